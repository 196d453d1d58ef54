"""The measurements of a comparison: values of single items, and their means, differences and intervals."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vpvae_hf.metric_labels import sort_metrics
from vpvae_hf.modalities import MODALITIES

from .bootstrap import Interval, bootstrap_interval
from .columns import COLUMNS, measured_column
from .config import Comparison
from .measuring import codec_pieces
from .runs import Run, bits_per_token

USAGE = "code_usage"


@dataclass(frozen=True)
class Row:
    """A run with what was measured of it.

    Attributes:
        result: the result of its training.
        measured: the results of its pieces by domain and column.
    """

    run: Run
    result: dict[str, Any]
    measured: dict[tuple[str, str], dict[str, Any]]

    def piece(self, domain: str, column: str) -> dict[str, Any] | None:
        """What was measured for a column; None if nothing was, or the method has no value there."""
        return self.measured.get((domain, measured_column(column, self.run.settings["quantizer"])))

    def values(self, domain: str, column: str, metric: str) -> np.ndarray | None:
        """The values [n] of single items; None if there are none."""
        piece = self.piece(domain, column)
        return None if piece is None or metric not in piece["items"] else np.array(piece["items"][metric], dtype=float)

    def mean(self, domain: str, column: str, metric: str) -> float:
        """The mean over items; NaN if there is none."""
        value = (self.piece(domain, column) or {"metrics": {}})["metrics"].get(metric)
        return math.nan if value is None else value

    @property
    def is_fitted_after_training(self) -> bool:
        """Whether its own codebook is the refitted one."""
        return measured_column("own", self.run.settings["quantizer"]) == "refitted"

    def for_json(self) -> dict[str, Any]:
        """The row without the values of single items and without what the comparison's file says."""
        found: dict[str, dict] = {}
        for (domain, column), piece in self.measured.items():
            told = {name: piece[name] for name in ("metrics", "tokens", "seconds")}
            found.setdefault(domain, {})[column] = told
        return {**self.result, "quantizer": self.run.settings["quantizer"], "measured": found}


class Results:
    """What was measured of a comparison.

    Attributes:
        rows: the runs that have measurements, method by method.
        hours: hours of training methods, of training starts, and of measuring.
        codec: results of the modality's codec by domain, see `measure_codec`; earlier versions measured none.
    """

    def __init__(self, comparison: Comparison, runs: Sequence[Run]):
        self.comparison, self.rows, self.hours = comparison, [], [0.0, 0.0, 0.0]
        order = list(comparison.methods)
        for run in runs:
            result = run.result
            if result is None:
                continue
            self.hours[run.size is None] += result["training_seconds"] / 3600
            read = {(piece.domain, piece.column): piece.read() for piece in run.pieces}
            measured = {place: piece for place, piece in read.items() if piece is not None}
            self.hours[2] += sum(piece["seconds"] for piece in measured.values()) / 3600
            if measured:
                self.rows.append(Row(run, result, measured))
        held = {piece.domain: piece.read() for piece in codec_pieces(comparison)}
        self.codec = {domain: each for domain, each in held.items() if each is not None}
        self.hours[2] += sum(each["seconds"] for each in self.codec.values()) / 3600
        self.rows.sort(key=lambda row: (order.index(row.run.method), row.run.size, row.run.seed))

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that have values of single items."""
        return sort_metrics({name for row in self.rows for piece in row.measured.values() for name in piece["items"]})

    @property
    def headline(self) -> str:
        """The first of the modality's headline metrics that was measured."""
        return next(name for name in MODALITIES[self.comparison.modality].headline_metrics if name in self.metrics)

    @cached_property
    def columns(self) -> list[str]:
        """The columns in which some method has a value."""
        names = self.comparison.measure.columns
        domains = self.comparison.domains
        return [name for name in names if any(row.piece(domain, name) for row in self.rows for domain in domains)]

    @cached_property
    def rate_unit(self) -> str:
        """The unit of `rate`."""
        return MODALITIES[self.comparison.modality].rate_unit if self._tells_rates else "bits per token"

    def rate(self, row: Row) -> float:
        """The rate of a run's codes."""
        bits = bits_per_token(row.result)
        return bits * row.result["rate_per_bit"] if self._tells_rates else bits

    @cached_property
    def _tells_rates(self) -> bool:
        """Whether all runs recorded how many tokens a signal has; runs of earlier versions did not."""
        return all("rate_per_bit" in row.result for row in self.rows)

    def codec_curve(self, metric: str) -> list[tuple[float, float]]:
        """The codec's rates and values in domain, from the smallest files on; empty if it or the runs have no rates."""
        points = self.codec.get("in_domain", {"points": []})["points"] if self._tells_rates else []
        return [(each["rate"], each["metrics"][metric]) for each in points if each["metrics"].get(metric) is not None]

    @property
    def sizes(self) -> list[int]:
        return sorted({row.run.size for row in self.rows})

    def methods(self, size: int) -> dict[str, list[Row]]:
        """The rows of each method at one K, seed by seed."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.run.size == size:
                found.setdefault(row.run.method, []).append(row)
        return found

    def difference(self, size: int, method: str, domain: str, column: str, metric: str) -> Interval | None:
        """A method minus the reference, over the seeds that both have; None if there is nothing to compare."""
        methods, reference = self.methods(size), self.comparison.reference
        if method == reference or reference not in methods or method not in methods:
            return None
        others = {row.run.seed: row.values(domain, column, metric) for row in methods[reference]}
        pairs = [(row.values(domain, column, metric), others.get(row.run.seed)) for row in methods[method]]
        return _interval(pairs)

    def gain(self, rows: Sequence[Row], domain: str, column: str, metric: str) -> Interval | None:
        """A column minus the one that it should improve on, for a method; None if one is missing, or both are one."""
        before = COLUMNS[column].before
        if before is None:
            return None
        rows = [row for row in rows if row.piece(domain, column) is not row.piece(domain, before)]
        return _interval([(row.values(domain, column, metric), row.values(domain, before, metric)) for row in rows])

    def items(self) -> dict[str, np.ndarray]:
        """Arrays as `write_report` stores them."""
        arrays = {"runs": np.array([row.run.folder.name for row in self.rows])}
        for domain, column in sorted({place for row in self.rows for place in row.measured}):
            pieces = [row.measured.get((domain, column), {"items": {}})["items"] for row in self.rows]
            for metric in sort_metrics({name for piece in pieces for name in piece}):
                width = max(len(piece[metric]) for piece in pieces if metric in piece)
                values = [np.array(piece.get(metric, []), dtype=np.float32) for piece in pieces]
                padded = [np.pad(each, (0, width - len(each)), constant_values=np.nan) for each in values]
                arrays[f"{domain}/{column}/{metric}"] = np.stack(padded)
        return arrays


def mean_of(values: Iterable[float]) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def _interval(pairs: Iterable[tuple[np.ndarray | None, np.ndarray | None]]) -> Interval | None:
    """The interval of the differences of pairs, over the first items that all have: refined columns may have fewer."""
    pairs = [(one, other) for one, other in pairs if one is not None and other is not None]
    if not pairs:
        return None
    count = min(len(values) for pair in pairs for values in pair)
    return bootstrap_interval(np.stack([one[:count] - other[:count] for one, other in pairs]))
