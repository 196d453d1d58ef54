"""A generator for libraries that draw from torch's global one."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded_by(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Within it torch's global generators follow `generator`, which goes on by one draw; afterwards they are as before.

    Args:
        generator: None leaves all as it is.
        device: whose global generator is meant, beside the CPU's.
    """
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    with torch.random.fork_rng(range(torch.cuda.device_count()) if device.type == "cuda" else []):
        torch.manual_seed(int(seed))
        yield
