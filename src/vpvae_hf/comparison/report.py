"""The report of a comparison: results.json, the values of single items, tables, and curves."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vpvae_hf.files import write_atomically, write_text

from .config import Comparison
from .curves import draw_over_rate, draw_over_training
from .results import USAGE, Results
from .runs import Run
from .tables import render_tables


def write_report(comparison: Comparison, runs: Sequence[Run]) -> list[Path]:
    """Write what has been measured of runs so far into the output folder.

    table.md has tables; rate_distortion.png and code_usage.png have curves over the rate. results.json has everything
    but the values of single items. items.npz has these: DOMAIN/COLUMN/METRIC [runs, items] float32, NaN where there is
    none, for the runs that "runs" names. cvu_over_training.png shows the runs that were validated while they trained,
    if there are any.

    Raises:
        ValueError: nothing was measured yet.
    """
    results = Results(comparison, runs)
    if not results.rows:
        raise ValueError("no run of the comparison is finished; there is nothing to report")
    output = comparison.output_dir
    files = [output / name for name in ("results.json", "table.md", "items.npz")]
    write_text(files[0], json.dumps([row.for_json() for row in results.rows], indent=1) + "\n")
    write_text(files[1], render_tables(results))
    with write_atomically(files[2]) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **results.items())
    for name, metric in (("rate_distortion.png", results.headline), ("code_usage.png", USAGE)):
        files.append(draw_over_rate(output / name, results, metric))
    if any(f"validation/{USAGE}" in each for row in results.rows for each in row.result["validation"]):
        files.append(draw_over_training(output / "cvu_over_training.png", results))
    return files
