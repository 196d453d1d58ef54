"""What a tokenizer keeps of held-out inputs."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vpvae_hf.neighbors import nearest_point

from .code_usage import code_usage
from .image import image_quality


@dataclass(frozen=True)
class ReconstructionQuality:
    """Means over images.

    Attributes:
        psnr, ssim: of what the codes give back; PSNR in dB.
        psnr_unquantized: PSNR of what the continuous latents give back.
        code_usage: CVU over all tokens.
        quantization_error_rms: root mean square distance of a latent to its code.
        images, tokens: how many were measured.
    """

    psnr: float
    ssim: float
    psnr_unquantized: float
    code_usage: float
    quantization_error_rms: float
    images: int
    tokens: int


@torch.no_grad()
def evaluate_reconstruction(model, batches: Iterable[Tensor], codebook: Tensor | None = None) -> ReconstructionQuality:
    """Measure an image tokenizer, in eval mode, without changing it.

    Args:
        model: an `AutoencoderVP`.
        batches: images [B, C, H, W] in [-1, 1].
        codebook: [K, d] to quantize with in place of the model's own, e.g. a preview during training.

    Raises:
        ValueError: no batches.
        CodebookNotFittedError: the model has no codes and no codebook is given.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    quality: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "psnr_unquantized": [], "error": []}
    codes: list[Tensor] = []
    try:
        for batch in batches:
            batch = batch.to(device)
            latents = model.encode(batch).latents
            vectors = latents.movedim(1, -1)
            if codebook is None:
                batch_codes = model.quantize.encode(vectors)
                quantized = model.quantize.decode(batch_codes)
            else:
                _, flat = nearest_point(vectors.flatten(0, -2), codebook)
                batch_codes = flat.view(vectors.shape[:-1])
                quantized = codebook.to(device)[batch_codes]
            images = model.decode(quantized.movedim(-1, 1), force_not_quantize=True).sample
            unquantized = model.decode(latents, force_not_quantize=True).sample
            measured = image_quality(images, batch)
            quality["psnr"].append(measured["psnr"])
            quality["ssim"].append(measured["ssim"])
            quality["psnr_unquantized"].append(image_quality(unquantized, batch)["psnr"])
            quality["error"].append((quantized - vectors.float()).square().sum(dim=-1).flatten())
            codes.append(batch_codes.flatten())
    finally:
        model.train(was_training)
    if not codes:
        raise ValueError("no batches to evaluate")
    means = {name: float(torch.cat(values).double().mean()) for name, values in quality.items()}
    all_codes = torch.cat(codes)
    size = model.quantize.codebook_size if codebook is None else len(codebook)
    return ReconstructionQuality(
        psnr=means["psnr"],
        ssim=means["ssim"],
        psnr_unquantized=means["psnr_unquantized"],
        code_usage=code_usage(all_codes, size),
        quantization_error_rms=means["error"] ** 0.5,
        images=sum(map(len, quality["psnr"])),
        tokens=len(all_codes),
    )
