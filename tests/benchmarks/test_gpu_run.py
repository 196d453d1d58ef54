"""The measurements for a GPU run through on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

_FOLDER = Path(__file__).parents[2] / "benchmarks/gpu"
# The others start processes, which take long.
_STAGES = ("environment", "correctness", "search", "index", "steps", "audio", "clustering", "tokenizing")
# A skipped figure that a CPU cannot have names one of these.
_ONLY_ELSEWHERE = ("peak memory", "synchronizations only on CUDA", "two GPUs", "flash-kmeans", "version of")


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(_FOLDER)
    import run

    # A stage has a process of its own, in which no other precision was chosen before.
    AcceleratorState._reset_state(reset_partial_state=True)
    yield run
    AcceleratorState._reset_state(reset_partial_state=True)
    for name in ("run", "figures", "measuring", "kernels", "steps", "paths"):
        sys.modules.pop(name, None)


def figures(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


# Graphs and operations that torch warns of are not what is tested here.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "stage", ["environment", "correctness", "search", "index", "steps", "audio", "clustering", "tokenizing"]
)
def test_every_figure_of_a_stage_is_there(run, tmp_path, stage):
    run.run_stage(stage, "cpu", True, tmp_path)
    found = figures(tmp_path)
    skipped = [
        f for f in found if "skipped" in f and not any(each in f["name"] + f["skipped"] for each in _ONLY_ELSEWHERE)
    ]
    assert found
    assert skipped == []


def test_a_stage_that_takes_too_long_is_killed_and_the_others_are_tabulated(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"stage": "earlier", "name": "a figure", "value": 1.5, "unit": "ms"}\n')
    command = [sys.executable, _FOLDER / "run.py", "--out", tmp_path, "--stages", "steps", "--device", "cpu", "--quick"]
    subprocess.run([*command, "--budget", "1"], check=True)
    assert figures(tmp_path)[1]["skipped"].startswith("killed after its ")
    table = (tmp_path / "table.md").read_text()
    assert "| earlier | a figure | 1.5 | ms |" in table
    assert "| steps | the rest of the stage | skipped: killed" in table
