import pytest
import rank_workers
import torch

from processes import start_server


@pytest.fixture(scope="module")
def ranks(request, tmp_path_factory):
    """What the module's `found_on` finds on each of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    start_server()
    arguments = (request.module.found_on, folder)
    torch.multiprocessing.start_processes(rank_workers.run, args=arguments, nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
