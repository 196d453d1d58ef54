"""The notebook, executed from its beginning, as a person runs it."""

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def shown(notebook) -> list[str]:
    """What kinds of output there are, and the lines that are printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    return kinds + [line for output in outputs for line in output.get("text", "").splitlines()]


def test_it_runs_and_shows_pictures_and_players(tmp_path, monkeypatch):
    why = {"reason": "the notebook is executed by nbclient and ipykernel, of the extra dev"}
    nbformat, nbclient = pytest.importorskip("nbformat", **why), pytest.importorskip("nbclient", **why)
    pytest.importorskip("ipykernel", **why)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    committed = shown(notebook)
    how = {"timeout": 600, "kernel_name": "python3", "resources": {"metadata": {"path": str(tmp_path)}}}
    executed = shown(nbclient.NotebookClient(notebook, **how).execute())
    for outputs in (committed, executed):
        assert outputs.count("image/png") == 2
        assert outputs.count("text/html") == 2  # players
        found = [float(line.rpartition("PSNR ")[2].split()[0]) for line in outputs if re.match(r" *\d+ codes: ", line)]
        assert len(found) == 4
        assert found == sorted(found)
