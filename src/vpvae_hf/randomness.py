"""Randomness for libraries that draw only from torch's global generators."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded_by(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """A context in which torch's global generators, of the CPU and the device, follow `generator`, if it is given.

    `generator` advances by one draw; afterwards the global generators are as before.
    """
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    with torch.random.fork_rng(range(torch.cuda.device_count()) if device.type == "cuda" else []):
        torch.manual_seed(int(seed))
        yield
