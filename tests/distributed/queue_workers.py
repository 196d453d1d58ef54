"""What each rank of the tests of the shared queue finds."""

import copy
import io
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rank_workers
import torch
import torch.distributed as dist
from rank_workers import error_of
from torch.nn.parallel import DistributedDataParallel

from vpvae_hf import build_quantizer, distributed
from vpvae_hf.quantizers import VectorPerturbation

CODES = 64


def features(rank: int, step: int) -> torch.Tensor:
    """Batches of unequal size, and three times as wide on the second rank."""
    generator = torch.Generator().manual_seed(100 * rank + step)
    return (1 + 2 * rank) * torch.randn(300 + 200 * rank, 2, generator=generator)


def quantizer_of(perturbation: str) -> VectorPerturbation:
    return build_quantizer(
        {"kind": "vp", "codebook_size": CODES, "latent_dim": 2, "queue_share": 0.3, "perturbation": perturbation}
    )


def steps_of(quantizer: VectorPerturbation, rank: int, steps: range) -> list[dict[str, Any]]:
    """What the queue, the scale and the latents were after each step."""
    rows = []
    for step in steps:
        output = quantizer(features(rank, step), generator=torch.Generator().manual_seed(step + 50 * rank))
        state = {"queue": quantizer.queue.latents(), "scale": quantizer.scale.state_dict()}
        state["live"] = quantizer.live.state_dict()
        rows.append(copy.deepcopy(state | {"latents": output.latents, "metrics": output.metrics}))
    return rows


def resumed(quantizer: VectorPerturbation, rank: int, steps: range) -> tuple[list[dict], list[dict]]:
    """The same steps, by the run that goes on and by one that starts from the first rank's state."""
    state = [copy.deepcopy(quantizer.training_state.state_dict())]
    dist.broadcast_object_list(state, src=0)
    other = quantizer_of(quantizer.config.perturbation)
    other.training_state.load_state_dict(state[0])
    return steps_of(quantizer, rank, steps), steps_of(other, rank, steps)


def collectives_of(quantizer: VectorPerturbation, rank: int, steps: range, tokens: int | None = None) -> list[str]:
    """The collectives that the ranks' steps make; `tokens`, if given, changes only the first rank's batches."""
    made, names = [], ("all_gather", "all_reduce", "broadcast")
    originals = {name: getattr(dist, name) for name in names}

    def noted(name):
        return lambda *arguments, **settings: made.append(name) or originals[name](*arguments, **settings)

    for name in names:
        setattr(dist, name, noted(name))
    try:
        for step in steps:
            latents = features(rank, step)
            quantizer(latents if rank or tokens is None else latents.repeat(9, 1)[:tokens])
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return made


def alone(who: int, rank: int, mark: Path, step: Callable) -> Any:
    """What the step gives on one rank, while the other waits outside of any collective and gets None."""
    if rank == who:
        result = step()
        mark.touch()
        return result
    end = time.monotonic() + 60
    while not mark.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"rank {who} did not end its step")
        time.sleep(0.05)
    return None


def said_while_waiting(rank: int) -> str:
    """What a rank logs in a training forward that the other rank runs seconds later."""
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    logging.getLogger("vpvae_hf.distributed").addHandler(handler)
    quantizer = quantizer_of("metropolis")
    if rank == 1:
        time.sleep(3)
    steps_of(quantizer, rank, range(1))
    logging.getLogger("vpvae_hf.distributed").removeHandler(handler)
    return logged.getvalue()


def failing_search(rank: int, where: int) -> str:
    """The error of a step that looks for eta, when that fails on one rank."""

    def broken(*_, **__):
        raise OSError("no memory left")

    quantizer = quantizer_of("metropolis")
    if rank == where:
        quantizer._trial_displacement_ms = broken
    return error_of(steps_of, quantizer, rank, range(2))


def trained_model(rank: int, mark: Path) -> dict[str, Any]:
    """A whole model in DDP; it is evaluated on the first rank alone after each step."""
    model = DistributedDataParallel(rank_workers.tiny_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    whole = model.module
    whole.set_codebook(torch.randn(16, 2, generator=torch.Generator().manual_seed(0)))
    for step, images in enumerate(rank_workers.images(rank)):
        part = images[: 2 + 2 * rank]
        output = model.train()(part)
        (output.sample.square().mean() + output.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        alone(0, rank, mark.with_name(f"{mark.name}-{step}"), lambda part=part: whole.eval()(part))
    return {
        "queue": whole.quantize.queue.latents(),
        "scale": whole.quantize.scale.state_dict(),
        "live": whole.quantize.live.state_dict(),
        "weights": whole.state_dict(),
    }


def found_on(rank: int, folder: Path) -> dict[Any, Any]:
    distributed._LONG_WAIT_S = 0.2
    found: dict[Any, Any] = {"waiting": said_while_waiting(rank)}
    distributed._LONG_WAIT_S = 60.0
    for perturbation in ("metropolis", "random_codebook"):
        quantizer = quantizer_of(perturbation)
        found[perturbation] = steps_of(quantizer, rank, range(12))
        found[perturbation, "collectives"] = [
            collectives_of(copy.deepcopy(quantizer), rank, range(12, 14), tokens) for tokens in (None, 20, 700)
        ]
        found[perturbation, "resumed"] = resumed(quantizer, rank, range(12, 16))
    quantizer.set_codebook(torch.randn(CODES, 2, generator=torch.Generator().manual_seed(0)))
    bad = torch.full((5, 2), torch.nan)
    found["eval"] = alone(0, rank, folder / "eval", lambda: quantizer.eval()(features(0, 0)).codes)
    found["NaN"] = alone(1, rank, folder / "NaN", lambda: error_of(quantizer.train(), bad))
    found["after"] = steps_of(quantizer.train(), rank, range(16, 18))
    found["failing"] = [failing_search(rank, where) for where in range(2)]
    found["model"] = trained_model(rank, folder / "model")
    return found
