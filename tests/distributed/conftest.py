import pytest
import rank_workers
import torch


@pytest.fixture(scope="module")
def ranks(request, tmp_path_factory):
    """What the module's `found_on` finds on each of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(rank_workers.run, args=(request.module.found_on, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
