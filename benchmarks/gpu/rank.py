"""One rank of a job: times training forwards of quantizers, and checks that the ranks' queues are equal."""

import json
import sys
import time

import torch
import torch.distributed as dist

from vpvae_hf import build_quantizer, distributed


class _OneThatCounts(int):
    """A world size of one that does not equal 1, so that the shortcuts for one rank are not taken."""

    __hash__ = int.__hash__

    def __eq__(self, other) -> bool:
        return False


def main(backend: str, device: str, quick: bool) -> None:
    dist.init_process_group(backend)
    alone = dist.get_world_size() == 1
    if device.startswith("cuda"):
        torch.cuda.set_device(0)
    found = {}
    for perturbation in ("metropolis", "random_codebook"):
        size = 64 if quick else 1024
        settings = {"kind": "vp", "codebook_size": size, "latent_dim": 4, "perturbation": perturbation}
        for forced in (False, True) if alone else (False,):
            distributed.world_size = (lambda: _OneThatCounts(1)) if forced else dist.get_world_size
            found[f"{perturbation}{', collectives forced' if forced else ''}"] = _milliseconds(settings, device, quick)
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()


def _milliseconds(settings: dict, device: str, quick: bool) -> float:
    torch.manual_seed(0)
    quantizer = build_quantizer(settings).to(device).train()
    dim, count = quantizer.latent_dim, 128 if quick else 8192
    quantizer.queue.push(torch.randn(quantizer.queue.capacity, dim).to(device))  # the same on each rank
    torch.manual_seed(1 + dist.get_rank())
    features, turns = torch.randn(count, dim).to(device), 3 if quick else 30
    for turn in range(2 + turns):
        if turn == 2:
            _wait(device)
            started = time.perf_counter()
        quantizer(features)
    _wait(device)
    milliseconds = 1000 * (time.perf_counter() - started) / turns
    queues = [None] * dist.get_world_size()
    dist.all_gather_object(queues, quantizer.queue.latents().double().sum().item())
    if len(set(queues)) != 1:
        raise RuntimeError(f"the ranks' queues differ: {queues}")
    return milliseconds


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:3], quick="--quick" in sys.argv)
