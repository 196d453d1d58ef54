"""Curves of a comparison: quality and code usage over the rate, and code usage over training."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vpvae_hf.settings import installed_with

from .columns import COLUMNS
from .results import USAGE, Results, mean_of

_UNQUANTIZED = "none"
_LINES = ("-", "--", ":", "-.")


def draw_over_rate(file: Path, results: Results, metric: str, heading: str) -> Path:
    """A metric in domain over bits per token, column by column: means over seeds, and where the metric is one of items
    bars that are the intervals of the differences from the reference.
    """
    columns = [name for name in results.columns if metric != USAGE or COLUMNS[name].codebook is not None]
    figure, panels = _figure(max(1, len(columns)))
    for axes, column in zip(panels, columns, strict=False):
        for method in results.comparison.methods:
            points = [_point(results, size, method, column, metric) for size in results.sizes]
            points = [point for point in points if point is not None]
            if points:
                bits, values, below, above = zip(*sorted(points), strict=True)
                axes.errorbar(bits, values, yerr=[below, above], capsize=2, label=method, **_style(results, method))
        axes.set(xlabel="bits per token", title=COLUMNS[column].label)
    panels[0].set(ylabel=f"{heading}, in domain")
    return _save(figure, panels, file)


def _point(results: Results, size: int, method: str, column: str, metric: str) -> tuple[float, ...] | None:
    """Bits, value, and how far the bar goes below and above it; None if there is none."""
    rows = results.methods(size).get(method, [])
    value = mean_of(row.mean("in_domain", column, metric) for row in rows)
    if math.isnan(value):
        return None
    interval = results.difference(size, method, "in_domain", column, metric)
    bars = (0.0, 0.0) if interval is None else (interval.mean - interval.low, interval.high - interval.mean)
    return rows[0].bits, value, *bars


def draw_over_training(file: Path, results: Results) -> Path:
    """CVU over training, at the K that most methods were trained for; a line for each run."""
    sizes = [row.run.size for row in results.rows]
    size = max(sorted(set(sizes)), key=sizes.count)
    figure, panels = _figure(1)
    for method, rows in results.methods(size).items():
        for first, row in enumerate(rows):
            name = f"validation/{USAGE}"
            points = [(each["step"], each[name]) for each in row.result["validation"] if name in each]
            if points:
                style = _style(results, method)
                panels[0].plot(*zip(*points, strict=True), **style, label=None if first else method)
    panels[0].set(xlabel="training step", ylabel="CVU on held-out data", title=f"Code usage over training, K = {size}")
    panels[0].set_ylim(0, 1)
    return _save(figure, panels, file)


def _figure(panels: int) -> tuple[Any, Sequence[Any]]:
    with installed_with("matplotlib"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(3.5 * panels + 3, 5), layout="constrained")
    return figure, figure.subplots(1, panels, sharex=True, sharey=True, squeeze=False)[0]


def _save(figure: Any, panels: Sequence[Any], file: Path) -> Path:
    lines = [axes.get_legend_handles_labels() for axes in panels]
    by_label = {label: line for found in lines for line, label in zip(*found, strict=True)}
    if by_label:  # a method without codes has no line
        figure.legend(by_label.values(), by_label.keys(), loc="outside right upper", fontsize="small")
    figure.savefig(file, dpi=120)
    return file


def _style(results: Results, method: str) -> dict[str, str]:
    """The style of a method's line; the method without quantization is black."""
    number = list(results.comparison.methods).index(method)
    color = "black" if method == _UNQUANTIZED else f"C{number % 10}"
    return {"color": color, "linestyle": _LINES[number // 10 % len(_LINES)], "marker": "."}
