import multiprocessing
import os
import sys

import pytest
import rank_workers
import torch


@pytest.fixture(scope="module")
def ranks(request, tmp_path_factory, monkeypatch_module):
    """What the module's `found_on` finds on each of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    # The ranks are forks of one clean process that has imported what they need, which takes seconds.
    monkeypatch_module.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    multiprocessing.set_forkserver_preload([request.module.found_on.__module__])
    arguments = (request.module.found_on, folder)
    torch.multiprocessing.start_processes(rank_workers.run, args=arguments, nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch
