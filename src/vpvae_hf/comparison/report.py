"""What the runs of a comparison came to: results.json, a table, and curves."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vpvae_hf.metric_labels import metric_label

from .config import Comparison
from .paper import paper_figures
from .runs import Run

# Metrics of the tables.
_METRICS = ("code_usage", "lpips", "psnr", "ssim", "pesq", "stoi", "mel_distance")
# What the curves show of each modality.
_QUALITY = {"image": "psnr", "audio": "pesq"}
_UNQUANTIZED = "none"
_LINES = ("-", "--", ":", "-.")


def write_report(comparison: Comparison, finished: Sequence[Run]) -> list[Path]:
    """Write results.json, table.md, cvu_over_training.png and rate_distortion.png into the output folder.

    Args:
        finished: runs with a result.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no run is finished.
    """
    if not finished:
        raise ValueError("no run of the comparison is finished; there is nothing to report")
    results = [run.result for run in finished]
    output = comparison.output_dir
    files = [output / name for name in ("results.json", "table.md", "cvu_over_training.png", "rate_distortion.png")]
    files[0].write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    files[1].write_text(render_table(comparison, results), encoding="utf-8")
    _draw(files[2], comparison, results, _draw_usage)
    _draw(files[3], comparison, results, _draw_rate_distortion)
    return files


def render_table(comparison: Comparison, results: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown for each K: means over seeds, with the standard deviation where there are several."""
    parts = []
    for size in sorted({result["size"] for result in results}):
        rows = _by_method(comparison, [result for result in results if result["size"] == size])
        parts.append(f"### K = {size}\n\n{_table(comparison, size, rows)}\n")
    return "\n".join(parts)


def _by_method(comparison: Comparison, results: Iterable[dict]) -> dict[str, list[dict]]:
    results = list(results)
    found = {name: [result for result in results if result["method"] == name] for name in comparison.methods}
    return {name: each for name, each in found.items() if each}


def _table(comparison: Comparison, size: int, rows: dict[str, list[dict]]) -> str:
    domains = ["in_domain", *(["out_of_domain"] if comparison.out_of_domain else [])]
    names = {
        domain: [
            name for name in _METRICS if any(name in (run[domain] or {}) for runs in rows.values() for run in runs)
        ]
        for domain in domains
    }
    quality = _QUALITY[comparison.modality]
    bound = _mean_of(rows.get(_UNQUANTIZED, []), lambda run: run["in_domain"].get(quality, math.nan))
    paper = {name: paper_figures(comparison.modality, size, comparison.methods[name].paper or "") for name in rows}
    paper_names = [name for name in _METRICS if any(name in figures for figures in paper.values())]
    header = ["method", "codes"]
    header += [metric_label(name).heading for name in names["in_domain"]]
    if not math.isnan(bound):
        header.append(f"{metric_label(quality).label} below {_UNQUANTIZED}")
    if comparison.out_of_domain:
        label = comparison.out_of_domain.label or comparison.out_of_domain.name
        header += [f"{label}: {metric_label(name).heading}" for name in names["out_of_domain"]]
    header += ["minutes", "quantizer's share", "seeds"] + [
        f"paper: {metric_label(name).heading}" for name in paper_names
    ]
    lines = [header, ["---"] * len(header)]
    for method, runs in rows.items():
        groups, count = runs[0]["code_groups"], runs[0]["codebook_size"]
        line = [method, "-" if count is None else f"{count}" if groups == 1 else f"{count}^{groups}"]
        line += [_cell(runs, "in_domain", name) for name in names["in_domain"]]
        if not math.isnan(bound):
            mine = _mean_of(runs, lambda run: run["in_domain"].get(quality, math.nan))
            line.append(f"{bound - mine:.{metric_label(quality).decimals}f}")
        if comparison.out_of_domain:
            line += [_cell(runs, "out_of_domain", name) for name in names["out_of_domain"]]
        line.append(f"{_mean_of(runs, lambda run: run['training_seconds']) / 60:.1f}")
        line.append(f"{_mean_of(runs, lambda run: run['quantizer_share_of_time']):.1%}")
        line.append(str(len(runs)))
        line += [f"{paper[method][name]:.4g}" if name in paper[method] else "" for name in paper_names]
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is missing; install it with: pip install matplotlib") from error
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    draw(axes, comparison, results)
    if axes.lines:  # what has no codes has no use of them either
        figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(file, dpi=120)


def _style(method: str, number: int) -> dict[str, str]:
    """Of a method's line; what is not quantized is black."""
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
    """Quality over bits per token: means over seeds; what has no codes stands at the K that it is compared at."""
    quality = _QUALITY[comparison.modality]
    for number, (method, runs) in enumerate(_by_method(comparison, results).items()):
        points = {}
        for run in runs:
            bits = None if run["codebook_size"] is None else run["code_groups"] * math.log2(run["codebook_size"])
            points.setdefault(bits or math.log2(run["size"]), []).append(run["in_domain"][quality])
        line = sorted((bits, statistics.fmean(values)) for bits, values in points.items())
        axes.plot(*zip(*line, strict=True), **_style(method, number), label=method)
    axes.set(
        xlabel="bits per token, log2 K", ylabel=metric_label(quality).heading, title="Quality over rate, in domain"
    )
