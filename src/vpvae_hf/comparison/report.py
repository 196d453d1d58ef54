"""The results of a comparison: results.json, a table, and curves."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vpvae_hf.files import write_text
from vpvae_hf.metric_labels import metric_label, sort_metrics
from vpvae_hf.modalities import MODALITIES
from vpvae_hf.settings import installed_with

from .config import Comparison
from .runs import Run

# Metrics that tables leave out.
_LEFT_OUT = ("perplexity", "codes_used", "quantization_error_rms")
_UNQUANTIZED = "none"
_LINES = ("-", "--", ":", "-.")


def write_report(comparison: Comparison, finished: Sequence[Run]) -> list[Path]:
    """Write results.json, table.md, cvu_over_training.png and rate_distortion.png into the output folder.

    Args:
        finished: runs with a result; a ValueError says so if there are none.
    """
    if not finished:
        raise ValueError("no run of the comparison is finished; there is nothing to report")
    results = [run.result for run in finished]
    output = comparison.output_dir
    files = [output / name for name in ("results.json", "table.md", "cvu_over_training.png", "rate_distortion.png")]
    write_text(files[0], json.dumps(results, indent=1) + "\n")
    write_text(files[1], render_table(comparison, results))
    _draw(files[2], comparison, results, _draw_usage)
    _draw(files[3], comparison, results, _draw_rate_distortion)
    return files


def render_table(comparison: Comparison, results: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown for each K: means over seeds, with the standard deviation if there are several."""
    parts = []
    for size in sorted({result["size"] for result in results}):
        rows = _by_method(comparison, [result for result in results if result["size"] == size])
        parts.append(f"### K = {size}\n\n{_table(comparison, size, rows)}\n")
    return "\n".join(parts)


def _by_method(comparison: Comparison, results: Sequence[dict]) -> dict[str, list[dict]]:
    found = {name: [result for result in results if result["method"] == name] for name in comparison.methods}
    return {name: each for name, each in found.items() if each}


def _table(comparison: Comparison, size: int, rows: dict[str, list[dict]]) -> str:
    by_row = list(rows.values())
    headline = _headline(comparison, [run for runs in by_row for run in runs])
    bound = _mean_of(rows.get(_UNQUANTIZED, []), lambda run: _in_domain(run, headline))
    columns = {"method": list(rows), "codes": [_codes(runs[0]) for runs in by_row]}
    columns |= _measured(by_row, "in_domain")
    if not math.isnan(bound):
        label = metric_label(headline)
        means = [_mean_of(runs, lambda run: _in_domain(run, headline)) for runs in by_row]
        columns[f"{label.label} below {_UNQUANTIZED}"] = [f"{bound - mean:.{label.decimals}f}" for mean in means]
    if comparison.out_of_domain:
        label = comparison.out_of_domain.label or comparison.out_of_domain.name
        columns |= _measured(by_row, "out_of_domain", f"{label}: ")
    seconds = [_mean_of(runs, lambda run: run["training_seconds"]) for runs in by_row]
    columns["minutes"] = [f"{each / 60:.1f}" for each in seconds]
    columns["seeds"] = [str(len(runs)) for runs in by_row]
    paper = [comparison.paper_metrics(method, size) for method in rows]
    for name in _shown(name for metrics in paper for name in metrics):
        values = [f"{metrics[name]:.4g}" if name in metrics else "" for metrics in paper]
        columns[f"paper: {metric_label(name).heading}"] = values
    lines = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _codes(run: dict) -> str:
    groups, count = run["code_groups"], run["codebook_size"]
    return "-" if count is None else f"{count}" if groups == 1 else f"{count}^{groups}"


def _measured(rows: Sequence[Sequence[dict]], domain: str, prefix: str = "") -> dict[str, list[str]]:
    """A column for each metric that was measured in a domain."""
    names = _shown(name for runs in rows for run in runs for name in run[domain] or {})
    return {prefix + metric_label(name).heading: [_cell(runs, domain, name) for runs in rows] for name in names}


def _shown(names: Iterable[str]) -> list[str]:
    """Those of some metrics that tables show, in their order."""
    return [name for name in sort_metrics(set(names).difference(_LEFT_OUT)) if not name.endswith("_unquantized")]


def _headline(comparison: Comparison, results: Iterable[dict]) -> str:
    """The first of the modality's headline metrics that was measured."""
    names = MODALITIES[comparison.modality].headline_metrics
    measured = {name for run in results for name in run["in_domain"] or {}}
    return next((name for name in names if name in measured), names[0])


def _in_domain(run: dict, name: str) -> float:
    return (run["in_domain"] or {}).get(name, math.nan)


def _cell(runs: Sequence[dict], domain: str, name: str) -> str:
    values = [run[domain][name] for run in runs if name in (run[domain] or {})]
    if not values:
        return "-"
    decimals = metric_label(name).decimals
    spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{decimals}f}{spread}"


def _mean_of(runs: Sequence[dict], value: Callable[[dict], float]) -> float:
    return statistics.fmean(value(run) for run in runs) if runs else math.nan


def _draw(file: Path, comparison: Comparison, results: Sequence[dict], draw: Callable) -> None:
    with installed_with("matplotlib"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    draw(axes, comparison, results)
    if axes.lines:  # a method without codes has no line
        figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(file, dpi=120)


def _style(method: str, number: int) -> dict[str, str]:
    """The style of a method's line; the method without quantization is black."""
    color = "black" if method == _UNQUANTIZED else f"C{number % 10}"
    return {"color": color, "linestyle": _LINES[number // 10 % len(_LINES)], "marker": "."}


def _draw_usage(axes, comparison: Comparison, results: Sequence[dict]) -> None:
    """CVU over training, at the K that most methods were trained for; a line for each run."""
    sizes = [result["size"] for result in results]
    size = max(sorted(set(sizes)), key=sizes.count)
    name = "validation/code_usage"
    rows = _by_method(comparison, [result for result in results if result["size"] == size])
    for number, (method, runs) in enumerate(rows.items()):
        for first, run in enumerate(runs):
            points = [(row["step"], row[name]) for row in run["validation"] if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), **_style(method, number), label=None if first else method)
    axes.set(xlabel="training step", ylabel="CVU on held-out data", title=f"Code usage over training, K = {size}")
    axes.set_ylim(0, 1)


def _draw_rate_distortion(axes, comparison: Comparison, results: Sequence[dict]) -> None:
    """The headline metric over bits per token: means over seeds; without codes, at the K of the comparison."""
    headline = _headline(comparison, results)
    for number, (method, runs) in enumerate(_by_method(comparison, results).items()):
        points = {}
        for run in runs:
            bits = None if run["codebook_size"] is None else run["code_groups"] * math.log2(run["codebook_size"])
            points.setdefault(bits or math.log2(run["size"]), []).append(_in_domain(run, headline))
        line = sorted((bits, statistics.fmean(values)) for bits, values in points.items())
        axes.plot(*zip(*line, strict=True), **_style(method, number), label=method)
    axes.set(xlabel="bits per token", ylabel=metric_label(headline).heading, title="Quality over rate, in domain")
