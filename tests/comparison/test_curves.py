"""Curves of a comparison whose results are written here; as SVG, so that what is written in them can be read."""

import json
import re
from pathlib import Path

import matplotlib
import pytest
import yaml

from vpvae_hf.comparison import planned_runs, read_comparison
from vpvae_hf.comparison.curves import draw_over_rate, draw_over_training
from vpvae_hf.comparison.measuring import codec_pieces
from vpvae_hf.comparison.results import Results
from vpvae_hf.comparison.tables import render_tables

RECIPE = Path(__file__).parents[2] / "recipes/image/small_f4.yaml"
PSNR = {"vp": {16: (24.0, 24.4), 64: (25.1, 25.2)}, "fsp": {16: (23.8, 23.9), 64: (24.9, 25.0)}}
BITS = {16: 4, 64: 6}


def results_of(folder, psnr, codec=None, **more):
    """Results of runs that have these values, seed by seed, for their own codes.

    Args:
        codec: results of the codec, as they are stored; its points are rates and PSNR.
    """
    methods = {name: {"quantizer": {"kind": "fsp"}, "codebook_sizes": list(by_size)} for name, by_size in psnr.items()}
    described = {"modality": "image", "training": str(RECIPE), "output_dir": str(folder / "runs"), "seeds": [0, 1]}
    described |= {"latent_dims": dict.fromkeys(BITS, 2), "methods": methods, "measure": {"columns": ["own"]}}
    folder.mkdir(exist_ok=True)
    (folder / "comparison.yaml").write_text(yaml.safe_dump(described))
    comparison = read_comparison(folder / "comparison.yaml")
    runs = planned_runs(comparison)
    for run in runs:
        (run.folder / "measured").mkdir(parents=True)
        usage = [{"step": step, "validation/code_usage": 0.1 * (1 + run.seed)} for step in (5, 10)]
        result = {"method": run.method, "size": run.size, "seed": run.seed, "codebook_size": run.size, "code_groups": 1}
        result |= {"training_seconds": 1.0, "validation": usage, **more}
        (run.folder / "result.json").write_text(json.dumps(result))
        value = psnr[run.method][run.size][run.seed]
        for piece in run.pieces:
            measured = {"settings": piece.settings, "metrics": {"psnr": value}, "items": {"psnr": [value]}}
            piece.file.write_text(json.dumps({**measured, "tokens": 9, "seconds": 1.0}))
    if codec is not None:
        (piece,) = codec_pieces(comparison)
        piece.file.parent.mkdir()
        points = [{"setting": 0, "rate": rate, "metrics": {"psnr": value}} for rate, value in codec.pop("points")]
        piece.file.write_text(json.dumps({"settings": piece.settings, "points": points, "seconds": 1.0, **codec}))
    return Results(comparison, runs)


def words(draw, folder, *arguments):
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        text = draw(folder / "curves.svg", *arguments).read_text()
    return re.findall(r"<text[^>]*>([^<]+)</text>", text)


def test_the_rate_is_that_of_the_signal_and_bars_are_seeds(tmp_path):
    found = words(draw_over_rate, tmp_path, results_of(tmp_path, PSNR, rate_per_bit=1 / 16), "psnr")
    assert {"vp", "fsp", "own codes", "bits per pixel", "PSNR, dB, in domain"} <= set(found)
    assert "bars: lowest to highest" in found
    rates = [float(each) for each in found if each.startswith("0.")]
    assert 0.24 < min(rates) < max(rates) < 0.39  # 4 and 6 bits of a token of 16 pixels
    assert not any(each.startswith(("vp:", "fsp:")) for each in found)


def test_runs_of_earlier_versions_tell_no_rate_of_the_signal(tmp_path):
    assert "bits per token" in words(draw_over_rate, tmp_path, results_of(tmp_path, PSNR), "psnr")


@pytest.mark.parametrize("value", [11.25, 40.5])
def test_what_is_far_off_is_told_instead_of_drawn(value, tmp_path):
    psnr = PSNR | {"off": {16: (value, value)}}
    found = words(draw_over_rate, tmp_path, results_of(tmp_path, psnr, rate_per_bit=1 / 16), "psnr")
    assert f"off: {value:.2f} dB" in found
    numbers = [float(each) for each in found if re.fullmatch(r"\d\d(\.\d+)?", each)]
    assert 23 < min(numbers) < max(numbers) < 26


def test_the_codec_is_a_dotted_line_within_the_rates_of_the_runs(tmp_path):
    """Although its points reach beyond them."""
    found, lines = [], []
    for codec in (None, {"codec": "WebP", "points": [(0.1, 15.0), (0.25, 24.0), (0.5, 25.0), (0.6, 30.0)]}):
        results = results_of(tmp_path / str(codec is None), PSNR, codec, rate_per_bit=1 / 16)
        found.append(words(draw_over_rate, tmp_path, results, "psnr"))
        lines.append((tmp_path / "curves.svg").read_text().count("stroke-dasharray: 1,1;"))
    assert sorted(found[1]) == sorted([*found[0], "WebP"])
    assert lines == [0, 2]  # in the panel and in the legend


@pytest.mark.parametrize(
    ("points", "shown"),
    [
        ([(0.2, 40.0), (0.5, 41.0)], "WebP: 40.17 dB"),  # far off, at the lowest rate of the runs
        ([(0.45, 27.0), (0.5, 28.0)], None),  # its smallest files are larger
    ],
)
def test_a_codec_that_is_nowhere_near_is_no_line(points, shown, tmp_path):
    codec = {"codec": "WebP", "points": points}
    results = results_of(tmp_path, PSNR, codec, rate_per_bit=1 / 16)
    found = words(draw_over_rate, tmp_path, results, "psnr")
    assert [each for each in found if each.startswith("WebP:")] == ([shown] if shown else [])
    assert ("WebP" in found) == (shown is not None)
    assert f"| {points[0][0]:.3f} | {points[0][1]:.2f} |" in render_tables(results)


def test_the_report_says_why_there_is_no_codec(tmp_path):
    results = results_of(tmp_path, PSNR, {"points": [], "why_not": "it cannot be written"}, rate_per_bit=1 / 16)
    assert "No familiar codec is compared: it cannot be written." in render_tables(results)
    assert results.codec_curve("psnr") == []


def test_usage_over_training_is_a_mean_in_a_band(tmp_path):
    found = words(draw_over_training, tmp_path, results_of(tmp_path, PSNR))
    assert {"K = 16", "band: lowest to highest", "training step"} <= set(found)
