"""Tables of a comparison in Markdown."""

import math
from collections.abc import Sequence
from typing import Any

from vpvae_hf.metric_labels import metric_label, sort_metrics
from vpvae_hf.modalities import MODALITIES

from .bootstrap import Interval
from .columns import COLUMNS
from .results import USAGE, Results, Row, mean_of

_NONE = "-"


def render_tables(results: Results) -> str:
    """For each K and domain: the metrics, the headline metric's differences from the reference, and what refitting and
    refining add to each method. Then what the codec reaches.
    """
    parts = []
    for size in results.sizes:
        parts.append(f"### K = {size}")
        for domain, split in results.comparison.domains.items():
            parts += _of_domain(results, size, domain, split.label)
    parts += _of_codec(results)
    training, starts, measuring = results.hours
    parts.append(
        f"In total {training + starts:.1f} hours of training, of which {starts:.1f} were for starts, and "
        f"{measuring:.1f} hours of measuring, of one process."
    )
    return "\n\n".join(parts) + "\n"


def _of_domain(results: Results, size: int, domain: str, where: str) -> list[str]:
    methods, headline = results.methods(size), results.headline
    heading = f"{metric_label(headline).heading}, {where}"
    values = _values(results, methods, domain, headline)
    if domain == next(iter(results.comparison.domains)):
        values = _with_runs(results, size, methods, values)
    parts = [f"{heading}, and code usage (CVU). {_counts(results, methods, domain)}", _markdown(values)]
    for metric in results.metrics:
        if metric != headline:
            table = _values(results, methods, domain, metric)
            parts += [f"{metric_label(metric).heading}, {where}.", _markdown(table)]
    reference = results.comparison.reference
    parts += _intervals(
        f"{heading}: the difference from {reference} in the same column",
        [COLUMNS[column].label for column in results.columns],
        {
            method: [results.difference(size, method, domain, column, headline) for column in results.columns]
            for method in methods
            if method != reference
        },
        metric_label(headline).decimals,
    )
    improving = [column for column in results.columns if COLUMNS[column].before in results.columns]
    parts += _intervals(
        f"{heading}: what refitting and refining add to a method",
        [f"{COLUMNS[each].label}, less {COLUMNS[COLUMNS[each].before].label}" for each in improving],
        {
            method: [results.gain(rows, domain, column, headline) for column in improving]
            for method, rows in methods.items()
        },
        metric_label(headline).decimals,
    )
    return parts


def _of_codec(results: Results) -> list[str]:
    """A table for each domain, or why there is none."""
    modality, parts = MODALITIES[results.comparison.modality], []
    for domain, held in results.codec.items():
        if not held["points"]:
            return [f"No familiar codec is compared: {held['why_not']}."]
        where = results.comparison.domains[domain].label
        if not parts:
            parts.append(f"### {held['codec']}")
            where += f"; means over the same {modality.items}. A file's bits include its headers"
        table = {modality.rate_unit: [f"{each['rate']:.3f}" for each in held["points"]]}
        for metric in sort_metrics(held["points"][0]["metrics"]):
            label = metric_label(metric)
            values = [each["metrics"][metric] for each in held["points"]]
            table[label.heading] = [_NONE if each is None else f"{each:.{label.decimals}f}" for each in values]
        parts += [f"{held['codec']}, {where}.", _markdown(table)]
    return parts


def _counts(results: Results, methods: dict[str, list[Row]], domain: str) -> str:
    """How many seeds and items the means are over, and for which methods own and refitted columns are the same."""
    items = MODALITIES[results.comparison.modality].items
    counts = {True: 0, False: 0}
    for column in results.columns:
        found = [row.values(domain, column, results.headline) for rows in methods.values() for row in rows]
        kind = COLUMNS[column].refined
        counts[kind] = max([counts[kind], *(len(values) for values in found if values is not None)])
    refined = f", refined ones over the first {counts[True]}" if counts[True] not in (0, counts[False]) else ""
    both = {"own", "refitted"} <= set(results.columns)
    fitted = [method for method, rows in methods.items() if both and rows[0].is_fitted_after_training]
    same = (
        f" The codebook of {', '.join(fitted)} is fitted after training: both its own and refitted." if fitted else ""
    )
    return f"Means over seeds and {counts[False]} {items}{refined}.{same}"


def _values(results: Results, methods: dict[str, list[Row]], domain: str, metric: str) -> dict[str, list[str]]:
    """Means over seeds of a metric, by column."""
    table = {"method": list(methods)}
    for column in results.columns:
        cells = [_cell(rows, domain, column, metric, metric == results.headline) for rows in methods.values()]
        table[COLUMNS[column].label] = cells
    return table


def _cell(rows: Sequence[Row], domain: str, column: str, metric: str, tells_usage: bool) -> str:
    value, usage = (mean_of(row.mean(domain, column, name) for row in rows) for name in (metric, USAGE))
    if math.isnan(value):
        return _NONE
    shown = f"{value:.{metric_label(metric).decimals}f}"
    return f"{shown} ({usage:.2f})" if tells_usage and not math.isnan(usage) else shown


def _with_runs(
    results: Results, size: int, methods: dict[str, list[Row]], values: dict[str, list[str]]
) -> dict[str, list[str]]:
    """A table of values, with facts about the runs and the paper's metrics."""
    runs = list(methods.values())
    codes = {"method": values["method"], "codes": [_codes(rows[0].result) for rows in runs]}
    seconds = [mean_of(row.result["training_seconds"] for row in rows) for rows in runs]
    table = codes | values | {"minutes": [f"{each / 60:.1f}" for each in seconds]}
    table["seeds"] = [", ".join(str(row.run.seed) for row in rows) for rows in runs]
    paper = [results.comparison.paper_metrics(method, size) for method in methods]
    for name in sort_metrics({name for metrics in paper for name in metrics}):
        shown = [f"{metrics[name]:.4g}" if name in metrics else "" for metrics in paper]
        table[f"paper: {metric_label(name).heading}"] = shown
    return table


def _codes(result: dict[str, Any]) -> str:
    groups, count = result["code_groups"], result["codebook_size"]
    return _NONE if count is None else f"{count}" if groups == 1 else f"{count}^{groups}"


def _intervals(what: str, heads: Sequence[str], rows: dict[str, list[Interval | None]], decimals: int) -> list[str]:
    """A table of intervals after a sentence about them; nothing if there are none."""
    starts = {each.starts for intervals in rows.values() for each in intervals if each is not None}
    if not starts:
        return []
    over = "items alone, since there is one seed" if starts == {1} else "seeds and items"
    table = {"method": list(rows)}
    for place, head in enumerate(heads):
        table[head] = [_shown(intervals[place], decimals) for intervals in rows.values()]
    told = f"{what}, with its 95% bootstrap interval over {over}; bold if that excludes 0."
    return [told, _markdown(table)]


def _shown(interval: Interval | None, decimals: int) -> str:
    if interval is None:
        return _NONE
    text = f"{interval.mean:+.{decimals}f} [{interval.low:.{decimals}f}, {interval.high:.{decimals}f}]"
    return f"**{text}**" if interval.excludes_zero else text


def _markdown(table: dict[str, list[str]]) -> str:
    lines = [list(table), ["---"] * len(table), *zip(*table.values(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
