"""Programs in processes of their own: forks of a server that has imported what would take each of them seconds."""

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import sys
import warnings
from multiprocessing.process import BaseProcess
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

_PRELOADED = ["processes", "rank_workers", "queue_workers", "generation_runs", "vpvae_hf.training.run"]


def start_server() -> None:
    """The processes of multiprocessing's "forkserver" are its forks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        multiprocessing.set_forkserver_preload(_PRELOADED)
        multiprocessing.forkserver.ensure_running()


def launched(program: Path | str, arguments: list, printed: Path, ranks: int = 1) -> BaseProcess:
    """A script or module in a process of its own, or in one for each rank of a job of torchrun. What it prints is in a
    file."""
    start_server()
    given = (program, [str(word) for word in arguments], printed, ranks, os.environ.copy())
    process = multiprocessing.get_context("forkserver").Process(target=_run, args=given)
    process.start()
    return process


def ended(process: BaseProcess, printed: Path) -> tuple[int, str]:
    """Exit status and output of a program that was launched; None if it still runs after ten minutes."""
    process.join(timeout=600)
    status = process.exitcode
    process.kill()  # if it still runs
    return status, printed.read_text()


def _run(program: Path | str, words: list[str], printed: Path, ranks: int, environment: dict[str, str]) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # the program's own processes start as they do by default
    os.environ.clear()
    os.environ.update(environment)
    with printed.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    if ranks == 1:
        warnings.simplefilter("error")
        _run_as_program(program, words)
        return
    settings = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": str(uuid4()), "max_restarts": 0}
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=ranks, start_method="fork", **settings)
    elastic_launch(config, _run_as_program)(program, words)


def _run_as_program(program: Path | str, words: list[str]) -> None:
    sys.argv = [str(program), *words]
    run = runpy.run_path if isinstance(program, Path) else runpy.run_module
    run(str(program) if isinstance(program, Path) else program, run_name="__main__")
