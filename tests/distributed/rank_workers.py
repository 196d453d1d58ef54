"""What the ranks of a job run, each in its own process, and what they find in the tests of k-means and quality."""

import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from image_runs import ARCHITECTURE

from tiny import tiny_vae
from vpvae_hf import AutoencoderVP, distributed, fit_codebook
from vpvae_hf.codebook import fit_kmeans, fit_nested_kmeans, kmeans
from vpvae_hf.metrics import ReconstructionQuality, evaluate_reconstruction


def latents(count: int, dim: int = 3) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(0))


def part_of_rank(rows: torch.Tensor, rank: int) -> torch.Tensor:
    """Uneven parts: three tenths and seven tenths."""
    first = len(rows) * 3 // 10
    return rows[:first] if rank == 0 else rows[first:]


def tiny_model() -> AutoencoderVP:
    return tiny_vae({"kind": "vp", "codebook_size": 16, "latent_dim": 2}, fitted=False, **ARCHITECTURE)


def images(rank: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(4)]


def error_of_dark_images(reconstruction: torch.Tensor, original: torch.Tensor) -> dict[str, torch.Tensor]:
    """An error that is not defined for images brighter than grey."""
    error = (reconstruction - original).square().mean(dim=(1, 2, 3))
    return {"error": error.masked_fill(original.mean(dim=(1, 2, 3)) > 0, torch.nan)}


def measured(model: AutoencoderVP, batches: list[torch.Tensor], across_ranks: bool) -> ReconstructionQuality:
    return evaluate_reconstruction(
        model, batches, metric_fn=error_of_dark_images, unquantized=("error",), across_ranks=across_ranks
    )


def fit_by_default(rank: int, case: str) -> tuple[torch.Tensor | None, str]:
    """The codebook of a rank that calls `fit_codebook` in a usual way, and what it was told."""
    distributed._WAIT = timedelta(seconds=0.2 if "rank" in case else 60)
    if case == ("second rank", "first rank")[rank]:
        return None, ""
    model = tiny_model()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        error = error_of(fit_codebook, model, images(0 if case == "same part" else rank), progress=False)
    return model.quantize.codebook, " ".join([error, *(str(warning.message) for warning in told)])


def error_of(call: Callable, *arguments, **settings) -> str:
    try:
        call(*arguments, **settings)
    except (ValueError, RuntimeError, OSError) as error:
        return str(error)
    return "no error"


def run(rank: int, found_on: Callable[[int, Path], dict[Any, Any]], folder: Path) -> None:
    """Join the job of two ranks, and leave what this one found in a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),  # a rank that waits in vain shall fail
    )
    torch.save(found_on(rank, folder), folder / f"{rank}.pt")
    dist.destroy_process_group()


def found_on(rank: int, folder: Path) -> dict[str, Any]:
    together = partial(fit_kmeans, across_ranks=True)
    found = {
        "drawn": together(part_of_rank(latents(6000), rank), 16),
        "whole": together(part_of_rank(latents(1500), rank), 64),
        "nested": fit_nested_kmeans(part_of_rank(latents(1500), rank), [4, 16], across_ranks=True),
        "draw": kmeans.gathered(torch.arange(1000.0)[:, None] + 1000 * rank, 1, 256, 0, across_ranks=True),
        "one rank's": together(latents(300)[: 300 * rank], 8),
        "alone": fit_kmeans(latents(200) + rank, 8),
        "distinct values": together(latents(10)[5 * rank : 5 * rank + 5].repeat(400, 1), 10),
        "too few distinct": error_of(together, latents(10)[5 * rank : 5 * rank + 5].repeat(400, 1), 11),
        "NaN": error_of(together, torch.where(torch.tensor(rank == 1), torch.nan, latents(300)), 8),
        "other dimension": error_of(together, latents(300, 3 + rank), 8),
        "no matrix": error_of(together, latents(300) if rank else latents(300)[None], 8),
        "many codes, NaN": error_of(together, torch.where(torch.tensor(rank == 1), torch.nan, latents(9000)), 8192),
    }
    model = tiny_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few latents per code, on purpose
        found["fit"] = fit_codebook(model, images(rank), across_ranks=True, progress=False)
    found["codebook"] = model.quantize.codebook
    near = tiny_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fit_codebook(near, images(rank), metric="decoder", across_ranks=True, progress=False)
    found["in the decoder's metric"] = near.quantize.state_dict()
    found["by default"] = {}
    for case in ("own parts", "same part", "first rank", "own parts again", "second rank"):
        found["by default"][case] = fit_by_default(rank, case)
        dist.barrier()
    found["quality"] = measured(model, images(0)[: 3 - 2 * rank], across_ranks=True)
    found["quality of one rank's"] = measured(model, images(0) if rank else [], across_ranks=True)
    return found
