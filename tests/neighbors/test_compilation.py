"""The kernels compile for a GPU, also where there is none, to machine code that does what they were written for."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from point_sets import needs_triton

pytestmark = needs_triton


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What cuobjdump shows of each kernel, freshly compiled."""
    folder = tmp_path_factory.mktemp("kernels")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_kernels.py")), str(folder)],
        env={**environment, "TRITON_CACHE_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    assert len(list((folder / "cache").rglob("*.cubin"))) == 2
    return json.loads(run.stdout)


@pytest.mark.parametrize("kernel", ["nearest", "ranked"])
def test_registers_do_not_spill(compiled, kernel):
    """The sizes of tiles are chosen for that."""
    assert re.findall(r"STACK:\d+ |LOCAL:\d+ ", compiled[kernel]) == ["STACK:0 ", "LOCAL:0 "]


@pytest.mark.parametrize("kernel", ["nearest", "ranked"])
def test_multiplications_and_additions_are_not_fused(compiled, kernel):
    """They would round differently from what the CPU computes."""
    instructions = set(re.findall(r"\b(FADD|FMUL|FFMA)\b", compiled[kernel]))
    assert instructions == {"FADD", "FMUL"}
