"""What a quantizer costs in training: alone, and within a training step of a VQGAN."""

import copy

import torch
from measuring import DIMENSIONS, TOKENS, Table, timed
from torch import nn

from vpvae_hf import AutoencoderVP, build_quantizer
from vpvae_hf.codebook import levels_for_codebook_size
from vpvae_hf.quantizers import QuantizerOutput

_MODEL_CODES = 1024


def compare(sizes: list[int], rounds: int, device: torch.device) -> list[Table]:
    return [_quantizers(sizes, rounds, device), _steps(rounds, device)]


def _quantizers(sizes: list[int], rounds: int, device: torch.device) -> Table:
    table = Table(
        "Quantizers in training",
        f"Forward and backward of the quantizer alone, {TOKENS} standard normal latents, the queue full. The VP rows "
        "contain their share of the index and of the measurement of the quantization error, which are renewed only "
        "now and then.",
    )
    for size in sizes:
        dim = DIMENSIONS[size]
        generator = torch.Generator(device).manual_seed(0)
        latents = torch.randn(TOKENS, dim, generator=generator, device=device, requires_grad=True)
        ways, extra = {}, {}
        for name, quantizer in _all(size, device).items():
            extra[name] = _occasional(quantizer, latents) if name.startswith("VP") else 0.0
            ways[name] = lambda quantizer=quantizer, latents=latents: _forward_backward(quantizer, latents)
        table.add(size, ways, max(rounds, 5), extra=extra)
    return table


def _steps(rounds: int, device: torch.device) -> Table:
    images, precision = (8, "bf16") if device.type == "cuda" else (1, "fp32")
    table = Table(
        "Training step",
        f"A whole step, Adam included, of one VQGAN (factor 8, 128 to 512 channels) with each quantizer in turn: "
        f"{images} image(s) of 256 pixels, L1, K={_MODEL_CODES}, {precision}, the queue full, "
        "occasional work shared out as above.",
    )
    torch.manual_seed(0)
    model = AutoencoderVP(quantizer={"kind": "vp", "codebook_size": _MODEL_CODES, "latent_dim": 4}).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    generator = torch.Generator(device).manual_seed(0)
    pixels = torch.rand(images, 3, 256, 256, generator=generator, device=device) * 2 - 1
    latents = torch.randn(images * 1024, 4, generator=generator, device=device, requires_grad=True)

    def step(quantizer: nn.Module) -> None:
        model.quantize = quantizer
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            output = model(pixels)
        optimizer.zero_grad(set_to_none=True)
        (nn.functional.l1_loss(output.sample, pixels) + output.loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    quantizers = {name: q for name, q in _all(_MODEL_CODES, device).items() if "FSP of" not in name}
    quantizers = {"FSP": quantizers.pop("FSP"), **quantizers}
    extra = {name: _occasional(q, latents) if name.startswith("VP") else 0.0 for name, q in quantizers.items()}
    alone = {name: timed(lambda q=q: _forward_backward(q, latents))[0] + extra[name] for name, q in quantizers.items()}
    for quantizer in quantizers.values():  # the first step makes the optimizer's state, and each compiles its kernels
        step(quantizer)
    table.add(
        _MODEL_CODES,
        {name: lambda q=q: step(q) for name, q in quantizers.items()},
        max(rounds, 5),
        extra=extra,
        remarks=lambda name, _: f"{alone[name]:.2g} s of it in the quantizer",
    )
    return table


def _all(size: int, device: torch.device) -> dict[str, nn.Module]:
    dim = DIMENSIONS[size]
    levels = list(levels_for_codebook_size(size, dim))
    quantizers: dict[str, nn.Module] = {"FSP": build_quantizer({"kind": "fsp", "levels": levels})}
    for perturbation in ("metropolis", "random_codebook"):
        vp = {"kind": "vp", "codebook_size": size, "latent_dim": dim, "perturbation": perturbation}
        quantizers[f"VP, {perturbation}"] = build_quantizer(vp)
        quantizers[f"VP, {perturbation}"].queue.push(
            torch.randn(16 * dim * size, dim, generator=torch.Generator(device).manual_seed(1), device=device)
        )
    quantizers |= {
        "FSP of vector-quantize-pytorch": _Other("FSP", levels),
        "FSQ of vector-quantize-pytorch": _Other("FSQ", levels),
    }
    return {name: quantizer.to(device).train() for name, quantizer in quantizers.items()}


class _Other(nn.Module):
    """A quantizer of vector-quantize-pytorch with the interface of ours."""

    def __init__(self, name: str, levels: list[int]):
        super().__init__()
        import vector_quantize_pytorch

        self.quantizer = getattr(vector_quantize_pytorch, name)(levels)

    def forward(self, features: torch.Tensor, *, generator: torch.Generator | None = None) -> QuantizerOutput:
        flat = features.float().reshape(1, -1, features.shape[-1])
        latents, codes, *rest = self.quantizer(flat)
        loss = rest[0] if rest else features.new_zeros(())
        return QuantizerOutput(latents=latents.view_as(features), codes=codes, loss=loss, metrics={})


def _forward_backward(quantizer: nn.Module, latents: torch.Tensor) -> None:
    output = quantizer(latents)
    (output.latents.square().mean() + output.loss).backward()


def _occasional(quantizer: nn.Module, latents: torch.Tensor) -> float:
    """Seconds per step for the index and the live codebook: their time divided by the steps between their updates."""
    quantizer(latents.detach())  # makes both for the first time
    pushed = quantizer.queue.pushed
    quantizer(latents.detach())
    pushed = quantizer.queue.pushed - pushed
    config, held = quantizer.config, len(quantizer.queue)
    live = copy.deepcopy(quantizer.live)
    seconds, _ = timed(lambda: [live.update(quantizer.queue, latents.device) for _ in range(10)])
    share = seconds / 10
    if config.perturbation == "metropolis":
        quantizer._index = None
        seconds, _ = timed(lambda: quantizer._current_index(latents.device))
        share += seconds * pushed / (config.index_refresh * held)
    return share
