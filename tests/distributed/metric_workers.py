"""What each rank of the test of metric modules runs, in a process of its own."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from vpvae_hf.metrics import load_metric


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """The third is not defined."""
    made, original = torch.rand(2, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made[2] = torch.nan
    return made, original


def error_of(compute, **given) -> str:
    try:
        compute(**given)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "no error"


def run(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    psnr, code_usage = (load_metric(name, across_ranks=True, cache_dir=folder) for name in ("psnr", "code_usage"))
    own = slice(0, 1) if rank == 0 else slice(1, 5)
    made, original = images()
    psnr.add_batch(predictions=made[own], references=original[own])
    found = {"psnr": psnr.compute(), "nothing": error_of(psnr.compute)}
    if rank == 1:
        code_usage.add_batch(predictions=torch.tensor([0, 0, 3, 1]), codebook_size=4)
    found["code_usage"] = code_usage.compute()
    code_usage.add_batch(predictions=torch.tensor([0]), codebook_size=4 + rank)
    found["sizes"] = error_of(code_usage.compute)
    found["failed"] = error_of(psnr.compute, predictions=made, references=None if rank else original)
    alone = load_metric("psnr", cache_dir=folder)
    found["alone"] = alone.compute(predictions=made[own], references=original[own])
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
