"""The kernels compile for a GPU, even without one, to machine code that does what they were written for."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from point_sets import needs_triton

pytestmark = needs_triton


# Stack in bytes, of the launches that differ most: a launch compiles one variant per dimension and capacity. A few
# registers are spilled outside of the innermost loops, so that more programs run at once.
STACK = {
    "nearest 16 any": 0,
    "ranked 1 512": 0,
    "ranked 5 512": 16,
    "ranked 8 512": 32,
    "ranked 8 1024": 0,
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What cuobjdump shows of each kernel, freshly compiled."""
    folder = tmp_path_factory.mktemp("kernels")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_kernels.py")), str(folder), *STACK],
        env={**environment, "TRITON_CACHE_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    assert len(list((folder / "cache").rglob("*.cubin"))) == len(STACK)
    return json.loads(run.stdout)


@pytest.mark.parametrize("kernel", STACK)
def test_registers_spill_no_more_than_is_known(compiled, kernel):
    """The sizes of tiles are chosen for that."""
    (stack,), (local,) = (re.findall(rf"{kind}:(\d+) ", compiled[kernel]) for kind in ("STACK", "LOCAL"))
    assert (int(stack), int(local)) == (STACK[kernel], 0)


@pytest.mark.parametrize("kernel", STACK)
def test_multiplications_and_additions_are_not_fused(compiled, kernel):
    """They would round differently from what the CPU computes."""
    instructions = set(re.findall(r"\b(FADD|FMUL|FFMA)\b", compiled[kernel]))
    assert instructions == {"FADD", "FMUL"}


@pytest.mark.parametrize("dim", [1, 5, 8])
def test_points_are_loaded_four_at_a_time(compiled, dim):
    assert len(re.findall(r"\bLDG\.E\.128\b", compiled[f"ranked {dim} 512"])) >= 2 * dim
