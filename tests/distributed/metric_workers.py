"""What each rank of the test of metric modules finds."""

from pathlib import Path
from typing import Any

import torch
from rank_workers import error_of

from vpvae_hf.metrics import load_metric


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Five pairs; metrics are not defined for the third."""
    made, original = torch.rand(2, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made[2] = torch.nan
    return made, original


def found_on(rank: int, folder: Path) -> dict[str, Any]:
    psnr, code_usage = (load_metric(name, across_ranks=True, cache_dir=str(folder)) for name in ("psnr", "code_usage"))
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
    alone = load_metric("psnr", cache_dir=str(folder))
    found["alone"] = alone.compute(predictions=made[own], references=original[own])
    return found
