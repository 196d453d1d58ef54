"""What a tokenizer keeps of held-out inputs."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from vpvae_hf import distributed
from vpvae_hf.neighbors import nearest_point

from .code_usage import usage_of_counts
from .image import image_quality, lpips_distance

# What is summed over batches and ranks.
_SUMS = ("psnr", "ssim", "psnr_unquantized", "lpips", "squared_error", "tokens", "images")


@dataclass(frozen=True)
class ReconstructionQuality:
    """Means over images.

    Attributes:
        psnr, ssim: of what the codes give back; PSNR in dB.
        psnr_unquantized: PSNR of what the continuous latents give back.
        code_usage: CVU over all tokens.
        quantization_error_rms: root mean square distance of a latent to its code.
        lpips: of what the codes give back; None where it was not asked for.
        images, tokens: how many were measured.
    """

    psnr: float
    ssim: float
    psnr_unquantized: float
    code_usage: float
    quantization_error_rms: float
    lpips: float | None
    images: int
    tokens: int

    def figures(self) -> dict[str, float]:
        """What was measured, by name, without the counts."""
        counts = ("images", "tokens")
        return {name: value for name, value in asdict(self).items() if name not in counts and value is not None}


def evaluate_reconstruction(
    model,
    batches: Iterable[Tensor],
    codebook: Tensor | None = None,
    *,
    lpips: bool = False,
    across_ranks: bool = False,
) -> ReconstructionQuality:
    """Measure an image tokenizer, in eval mode, without changing it.

    Args:
        model: an `AutoencoderVP`.
        batches: images [B, C, H, W] in [-1, 1].
        codebook: [K, d] to quantize with in place of the model's own, e.g. a preview during training.
        lpips: measure it too, which takes a network that may have to be downloaded, see `lpips_distance`.
        across_ranks: in a distributed job, measure the batches of all ranks together, of which each may have any
            number. Every rank must make this call, and all get the same result.

    Raises:
        ValueError: no batches.
        CodebookNotFittedError: the model has no codes and no codebook is given.
    """
    device = next(model.parameters()).device
    size = model.quantize.codebook_size if codebook is None else len(codebook)
    sums = torch.zeros(len(_SUMS), dtype=torch.float64)
    counts = torch.zeros(size, dtype=torch.long)
    with distributed.failing_together(across_ranks):
        for batch in batches:
            batch = batch.to(device)
            made = reconstruct(model, batch, codebook)
            sums += torch.tensor(_sums(made, batch, lpips), dtype=torch.float64)
            counts += torch.bincount(made.codes.flatten(), minlength=size).cpu()
    if across_ranks:
        sums, counts = distributed.sum_over_ranks(sums), distributed.sum_over_ranks(counts)
    total = dict(zip(_SUMS, sums.tolist(), strict=True))
    if not total["images"]:
        raise ValueError("no batches to evaluate")
    return ReconstructionQuality(
        psnr=total["psnr"] / total["images"],
        ssim=total["ssim"] / total["images"],
        psnr_unquantized=total["psnr_unquantized"] / total["images"],
        code_usage=usage_of_counts(counts),
        quantization_error_rms=(total["squared_error"] / total["tokens"]) ** 0.5,
        lpips=total["lpips"] / total["images"] if lpips else None,
        images=int(total["images"]),
        tokens=int(total["tokens"]),
    )


@dataclass(frozen=True)
class Reconstruction:
    """A batch through a tokenizer.

    Attributes:
        quantized, unquantized: [B, C, H, W], from codes and from continuous latents.
        codes: [B, h, w] int64.
        squared_error: [B, h, w] squared distance of each latent to its code.
    """

    quantized: Tensor
    unquantized: Tensor
    codes: Tensor
    squared_error: Tensor


@torch.no_grad()
def reconstruct(model, batch: Tensor, codebook: Tensor | None = None) -> Reconstruction:
    """Encode and decode images [B, C, H, W] in [-1, 1] in eval mode; arguments as `evaluate_reconstruction`."""
    was_training = model.training
    model.eval()
    try:
        latents = model.encode(batch).latents
        vectors = latents.movedim(1, -1)
        if codebook is None:
            codes = model.quantize.encode(vectors)
            quantized = model.quantize.decode(codes)
        else:
            codebook = codebook.to(batch.device)
            _, flat = nearest_point(vectors.flatten(0, -2).float(), codebook)
            codes = flat.view(vectors.shape[:-1])
            quantized = codebook[codes]
        return Reconstruction(
            quantized=model.decode(quantized.movedim(-1, 1), force_not_quantize=True).sample,
            unquantized=model.decode(latents, force_not_quantize=True).sample,
            codes=codes,
            squared_error=(quantized - vectors.float()).double().square().sum(dim=-1),
        )
    finally:
        model.train(was_training)


def _sums(made: Reconstruction, batch: Tensor, lpips: bool) -> list[float]:
    """In the order of `_SUMS`."""
    quality = image_quality(made.quantized, batch)
    unquantized = image_quality(made.unquantized, batch)["psnr"]
    distance = lpips_distance(made.quantized, batch) if lpips else torch.zeros(len(batch))
    sums = (quality["psnr"], quality["ssim"], unquantized, distance, made.squared_error)
    return [*(float(values.double().sum()) for values in sums), made.codes.numel(), len(batch)]
