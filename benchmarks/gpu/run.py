"""Measure the package on a machine with a GPU, in one command: `run.py --out FOLDER --budget 520 --stages ...`.

The machine may be bare: Python 3.12, torch, triton, transformers and accelerate. `--wheels FOLDER` installs wheels into
a temporary folder (diffusers, pykdtree, importlib_metadata, vector-quantize-pytorch, einx, torch-einops-utils,
frozendict, loguru; datasets, dill, multiprocess, torchdata, omegaconf for the stages `tokenizing` and `runs`; if there
is one, flash-kmeans). If something is missing, the figures that need it are skipped, with the reason. Each stage runs
in a process of its own and gets its share of the remaining seconds; one that takes longer is killed, and what it has
measured stays. FOLDER gets results.jsonl (a line for each figure), table.md, and what each stage printed.

Three calls of 8.5 to 9 minutes measure everything:

    run.py --out $OUT --budget 530 --stages environment correctness search index
    run.py --out $OUT --budget 510 --stages steps audio
    run.py --out $OUT --budget 540 --stages clustering tokenizing runs ranks

`--device cpu --quick` runs the same code on small sizes, to see that it runs.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import add, table

_ROOT = Path(__file__).parents[2]
# Stage -> module and its share of the time, in seconds of a full run.
_STAGES = {
    "environment": ("kernels", 20),
    "correctness": ("kernels", 200),
    "search": ("kernels", 240),
    "index": ("kernels", 60),
    "steps": ("steps", 400),
    "audio": ("steps", 100),
    "clustering": ("paths", 90),
    "tokenizing": ("paths", 160),
    "runs": ("paths", 210),
    "ranks": ("paths", 80),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=520, help="seconds in all")
    parser.add_argument("--stages", nargs="+", choices=_STAGES, default=list(_STAGES))
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install, without their dependencies")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--stage", choices=_STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        run_stage(arguments.stage, arguments.device, arguments.quick, arguments.out)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as site:
        _run(arguments, site)


def _run(arguments: argparse.Namespace, site: str) -> None:
    end = time.monotonic() + arguments.budget
    if arguments.wheels is not None:
        wheels = map(str, sorted(arguments.wheels.glob("*.whl")))
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-index",
            "--no-deps",
            "--no-compile",
            "--target",
            site,
        ]
        subprocess.run([*pip, *wheels], check=True)
    environment = dict(os.environ)
    paths = [str(_ROOT / "src"), site, environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    left = sum(_STAGES[stage][1] for stage in arguments.stages)
    (arguments.out / "results.jsonl").touch()
    for stage in arguments.stages:
        limit = (end - time.monotonic()) * _STAGES[stage][1] / left
        left -= _STAGES[stage][1]
        _in_process(stage, arguments, environment, limit)
    (arguments.out / "table.md").write_text(table(arguments.out), encoding="utf-8")
    print((arguments.out / "table.md").read_text(encoding="utf-8"))


def _in_process(stage: str, arguments: argparse.Namespace, environment: dict[str, str], limit: float) -> None:
    command = [sys.executable, __file__, "--stage", stage, "--out", str(arguments.out), "--device", arguments.device]
    with (arguments.out / f"{stage}.log").open("w") as log:
        how = {"env": environment, "stdout": log, "stderr": log, "start_new_session": True}
        process = subprocess.Popen([*command, *(["--quick"] if arguments.quick else [])], **how)
        try:
            status = process.wait(max(1.0, limit))
            reason = None if status == 0 else f"exit status {status}, see {stage}.log"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reason = f"killed after its {limit:.0f} s"
    if reason is not None:
        add(arguments.out, {"stage": stage, "name": "the rest of the stage", "skipped": reason})


def run_stage(stage: str, device: str, quick: bool, out: Path) -> None:
    """Run a stage in this process."""
    import importlib

    import torch
    from measuring import Session

    session = Session(torch.device(device), quick, out, stage)
    if session.on_cuda and not torch.cuda.is_available():
        raise SystemExit(f"{device} was asked for, and torch {torch.__version__} finds no GPU")
    getattr(importlib.import_module(_STAGES[stage][0]), stage)(session)


if __name__ == "__main__":
    main()
