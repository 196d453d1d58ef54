"""A device that does not exist counts what torch would do on a real one."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or importlib.util.find_spec("triton") is None,
    reason="compiles a device, which needs g++, and counts launches of triton's kernels",
)


@pytest.fixture(scope="module")
def counted():
    script = Path(__file__).with_name("counted.py")
    return json.loads(subprocess.run([sys.executable, script], check=True, stdout=subprocess.PIPE).stdout)


@pytest.mark.parametrize(
    ("operation", "expected"),
    {
        **dict.fromkeys(("item", "bool", "tolist", "equal", "nonzero", "mask", "unique", "new tensor"), 1),
        **{"bincount": 2, "mask, assigned": 2, "list of places": 1, "to the host": 1, "to the device": 1},
        **dict.fromkeys(("mask, filled", "places", "full", "clamp and sort", "views", "nearest", "backward"), 0),
        **dict.fromkeys(("to the host, not waited for", "to the device, not waited for"), 0),
    }.items(),
)
def test_synchronizations(counted, operation, expected):
    assert counted[operation]["syncs"] == expected


def test_launches_and_copies(counted):
    assert counted["views"]["launches"] == {}
    assert sum(counted["clamp and sort"]["launches"].values()) == 2
    assert counted["backward"]["launches"]["backward"] > 2
    for name in ("to the device", "to the device, not waited for"):
        assert counted[name]["to_device"]["bytes"] == 6 * 3 * 4
    assert counted["to the device, not waited for"]["to_device"]["blocking"] == 0
