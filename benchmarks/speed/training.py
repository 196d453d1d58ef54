"""Steps of training in float32 and bf16, with both layouts of memory."""

import math
from collections.abc import Callable

import torch
from measuring import Table

from vpvae_hf import AutoencoderVP, bundled_tokenizer

_BATCH, _SIDE, _STEPS = 16, 96, 10
_WAYS = {
    "float32": (torch.float32, torch.contiguous_format),
    "float32, channels last": (torch.float32, torch.channels_last),
    "bf16": (torch.bfloat16, torch.contiguous_format),
    "bf16, channels last": (torch.bfloat16, torch.channels_last),
}


def compare(sizes: list[int], rounds: int, device: torch.device) -> list[Table]:
    """The codebook's size is the tokenizer's own, so `sizes` is not used."""
    table = Table(
        "Training the bundled image tokenizer",
        f"{_STEPS} steps of `--mixed_precision` no or bf16, `--channels_last` false or true, on {_BATCH} images of "
        f"{_SIDE} x {_SIDE} pixels, without reading them: forward, backward and AdamW. A CPU is fast in bf16 if it has "
        "instructions for it, such as avx512_bf16.",
    )
    ways = {name: _steps(device, *how) for name, how in _WAYS.items()}
    for steps in ways.values():
        steps()  # the first steps choose algorithms
    table.add(None, ways, rounds)
    return [table]


def _steps(device: torch.device, precision: torch.dtype, layout: torch.memory_format) -> Callable[[], None]:
    torch.manual_seed(0)
    model = AutoencoderVP.from_pretrained(bundled_tokenizer("image")).to(device, memory_format=layout).train()
    model.drop_fit()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    filling = math.ceil(2 * model.quantize.config.codebook_size_range[1] / (_BATCH * (_SIDE // 8) ** 2))
    with torch.no_grad():
        for _ in range(filling):  # latents are perturbed for every K once the queue holds twice the largest
            images = torch.rand(_BATCH, 3, _SIDE, _SIDE, device=device) * 2 - 1
            model(images)

    def run() -> None:
        for _ in range(_STEPS):
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                output = model(images)
            (output.loss + (output.sample.float() - images).square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run
