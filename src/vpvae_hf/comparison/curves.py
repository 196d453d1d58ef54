"""Curves of a comparison: quality and code usage over the rate, and code usage over training."""

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vpvae_hf.figures import COLOURS, MARKERS, drawn_figure
from vpvae_hf.metric_labels import metric_label

from .columns import COLUMNS
from .results import USAGE, Results, Row, mean_of

_UNQUANTIZED = "none"
_LINES = ("-", "--", ":", "-.")
_PANELS_IN_A_ROW = 3
_CODEC_STYLE = {"color": "black", "linestyle": (0, (1, 1)), "linewidth": 1.0}
# In inches: the margins beside and above the panels, and the height of a line of the legend.
_LEGEND, _LEGEND_LINE = (2.6, 0.3), 0.21
# Values this many interquartile ranges beyond the quartiles are written instead of drawn, if that saves this share of
# the axis.
_FAR, _SAVED = 2.0, 1 / 3


def draw_over_rate(file: Path, results: Results, metric: str) -> Path:
    """A metric in domain over the rate, a panel for each column: means over seeds, bars from the lowest to the highest.

    A value that is far from all others is written at the edge of its panel, so that the others keep their space. Panels
    of codes also have the codec's line, as far as it lies within them.
    """
    columns = [name for name in results.columns if metric != USAGE or COLUMNS[name].codebook is not None] or [""]
    methods = list(results.comparison.methods)
    curves = {pair: _points(results, *pair, metric) for pair in itertools.product(columns, methods)}
    codec = _codec_points(results, metric, {rate for points in curves.values() for rate, *_ in points})
    shown = [value for points in curves.values() for _, *seeds in points for value in seeds]
    shown += [value for _, value in codec]
    low, high = (0.0, 1.0) if metric == USAGE else _range(shown)
    wide = min(len(columns), _PANELS_IN_A_ROW)
    with drawn_figure(file, -(-len(columns) // wide), wide, margin=_LEGEND, shared=True) as (figure, panels):
        drawn = list(zip(panels.flat, columns, strict=False))
        beyond = [
            [far for each in methods for far in _draw(axes, curves[column, each], each, results, low, high)]
            for axes, column in drawn
        ]
        rates = panels[0, 0].get_xlim()  # of the methods in all panels
        for (axes, column), far in zip(drawn, beyond, strict=True):
            if codec and COLUMNS[column].codebook is not None:
                far += _draw_codec(axes, codec, results, metric, low, high)
            axes.set_xlim(rates)
            _tell_far(axes, far, metric, low, high)
            axes.set_title(COLUMNS[column].label if column else "")
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(results.rate_unit)
        for axes in panels.flat[len(columns) :]:
            axes.set_visible(False)
        margin = 0.04 * (high - low) or 0.5  # around a single value
        panels[0, 0].set_ylim(low - margin, high + margin)
        for axes in panels[:, 0]:
            axes.set_ylabel(f"{metric_label(metric).heading}, in domain")
        _legend(figure, panels, "bars", any(len(seeds) > 1 for points in curves.values() for _, *seeds in points))
    return file


def _points(results: Results, column: str, method: str, metric: str) -> list[tuple[float, ...]]:
    """For each K the rate, then the values of the seeds."""
    found = []
    for size in results.sizes:
        rows = results.methods(size).get(method, [])
        seeds = [row.mean("in_domain", column, metric) for row in rows] if column else []
        seeds = [each for each in seeds if not math.isnan(each)]
        if seeds:
            found.append((results.rate(rows[0]), *seeds))
    return sorted(found)


def _draw(
    axes: Any, points: Sequence[tuple[float, ...]], method: str, results: Results, low: float, high: float
) -> list[tuple[float, float, str, str]]:
    """Draw a method's line; return its points that lie beyond the limits: rate, value, method and colour."""
    if not points:
        return []
    style, means = _style(results, method), [mean_of(seeds) for _, *seeds in points]
    rates = [point[0] for point in points]
    bars = [
        (mean - min(seeds), max(seeds) - mean) if len(seeds) > 1 else (math.nan, math.nan)
        for mean, (_, *seeds) in zip(means, points, strict=True)
    ]
    axes.errorbar(rates, means, yerr=np.transpose(bars), label=method, **style)
    at = zip(rates, means, strict=True)
    return [(rate, mean, method, style["color"]) for rate, mean in at if not low <= mean <= high]


def _codec_points(results: Results, metric: str, rates: Collection[float]) -> list[tuple[float, float]]:
    """The codec's rates and values at those of the given rates that it reaches, from the lowest on."""
    curve = results.codec_curve(metric)
    reached = [rate for rate in sorted(rates) if curve and curve[0][0] <= rate <= curve[-1][0]]
    return [(rate, float(np.interp(rate, *zip(*curve, strict=True)))) for rate in reached]


def _draw_codec(
    axes: Any, points: Sequence[tuple[float, float]], results: Results, metric: str, low: float, high: float
) -> list[tuple[float, float, str, str]]:
    """Draw the codec's line; if all its points lie beyond the limits, return the first as `_draw` does."""
    name = results.codec["in_domain"]["codec"]
    # With `errorbar`, as in `_draw`, so that the legend lists it after the methods.
    axes.errorbar(*zip(*results.codec_curve(metric), strict=True), label=name, **_CODEC_STYLE)
    is_beyond = not any(low <= value <= high for _, value in points)
    return [(*points[0], name, _CODEC_STYLE["color"])] if is_beyond else []


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest value, without values that are far off if these would press the others together."""
    if not values:
        return 0.0, 1.0
    first, third = np.quantile(values, [0.25, 0.75])
    reach = _FAR * (third - first)
    near = [each for each in values if first - reach <= each <= third + reach]
    whole = max(values) - min(values)
    return (min(near), max(near)) if max(near) - min(near) <= (1 - _SAVED) * whole else (min(values), max(values))


def _tell_far(axes: Any, points: Iterable[tuple[float, float, str, str]], metric: str, low: float, high: float) -> None:
    """Write what lies beyond the limits at the edge, with an arrow that points to where it is."""
    lines, middle = {True: 0, False: 0}, sum(axes.get_xlim()) / 2
    for rate, value, method, colour in sorted(points):
        is_below = value < low
        lines[is_below] += 1
        away = 14 * lines[is_below] + 6
        axes.annotate(
            f"{method}: {metric_label(metric).format(value)}",
            xy=(rate, 0 if is_below else 1),
            xycoords=("data", "axes fraction"),
            xytext=(10 if rate < middle else -10, away if is_below else -away),
            textcoords="offset points",
            arrowprops={"arrowstyle": "->", "color": colour},
            color=colour,
            fontsize="small",
            ha="left" if rate < middle else "right",
            va="center",
        )


def draw_over_training(file: Path, results: Results) -> Path:
    """CVU over training, at the K that most methods were trained for: means over seeds, in a band from the lowest to
    the highest.
    """
    sizes = [row.run.size for row in results.rows]
    size = max(sorted(set(sizes)), key=sizes.count)
    with drawn_figure(file, panel=(7.0, 4.6), margin=_LEGEND) as (figure, panels):
        (axes,) = panels.flat
        several = False
        for method, rows in results.methods(size).items():
            curve = _usage_by_step(rows)
            if curve:
                style, steps = _style(results, method), sorted(curve)
                axes.plot(steps, [mean_of(curve[step]) for step in steps], label=method, **style)
                low, high = ([pick(curve[step]) for step in steps] for pick in (min, max))
                axes.fill_between(steps, low, high, color=style["color"], alpha=0.18, linewidth=0)
                several |= len(rows) > 1
        axes.set(xlabel="training step", ylabel=f"{metric_label(USAGE).heading}, held-out data", title=f"K = {size}")
        axes.set_ylim(0, 1)
        _legend(figure, panels, "band", several)
    return file


def _usage_by_step(rows: Sequence[Row]) -> dict[int, list[float]]:
    """Step -> CVU of each seed that was validated there."""
    name, curve = f"validation/{USAGE}", {}
    for row in rows:
        for each in row.result["validation"]:
            if name in each:
                curve.setdefault(each["step"], []).append(each[name])
    return curve


def _legend(figure: Any, panels: np.ndarray, spread: str, has_spread: bool) -> None:
    """Draw the legend: which line is which method, and what bars or bands mean."""
    lines = [axes.get_legend_handles_labels() for axes in panels.flat]
    by_label = {label: line for found in lines for line, label in zip(*found, strict=True)}
    if by_label:  # a method without codes has no line
        title = f"mean of the seeds;\n{spread}: lowest to highest" if has_spread else None
        figure.set_figheight(max(figure.get_figheight(), _LEGEND_LINE * (len(by_label) + 4)))
        figure.legend(by_label.values(), by_label.keys(), loc="outside right upper", fontsize="small", title=title)


def _style(results: Results, method: str) -> dict[str, str]:
    """The style of a method's line; the method without quantization is black."""
    there = {row.run.method for row in results.rows} - {_UNQUANTIZED}
    number = [each for each in results.comparison.methods if each in there or each == method].index(method)
    color = "black" if method == _UNQUANTIZED else COLOURS[number % len(COLOURS)]
    line = _LINES[number // len(COLOURS) % len(_LINES)]
    return {"color": color, "linestyle": line, "marker": MARKERS[number % len(MARKERS)]}
