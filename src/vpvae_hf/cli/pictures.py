"""Pictures of what a tokenizer does with images [B, C, H, W] in [-1, 1] and their codes [B, h, w]."""

import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from vpvae_hf.figures import drawn_figure
from vpvae_hf.metric_labels import METRIC_LABELS
from vpvae_hf.metrics import image_grid, image_quality
from vpvae_hf.metrics.pictures import SHOWN_SIDE, as_rgb, code_colours
from vpvae_hf.models import AutoencoderVP
from vpvae_hf.pixels import center_crop, scaled, to_pixel_values
from vpvae_hf.training.trainer import MetricsLog


def save_every_size(path: str | os.PathLike, model: AutoencoderVP, photographs: Sequence[np.ndarray]) -> None:
    """Save a picture of the middle squares of photographs [H, W, 3] uint8, scaled to the side that the model was
    trained for, above their reconstructions with each of the model's codebooks, with bytes and PSNR.
    """
    side = model.config.sample_size
    images = to_pixel_values(np.stack([center_crop(scaled(image, side), side, side) for image in photographs]))
    selected, rows = model.quantize.codebook_size, {f"original\n{images[0].numel():,} bytes": images}
    captions: list[list[str]] = [[]]
    for size in sorted(model.codebook_sizes):
        model.select_codebook(size)
        codes = model.tokenize(images)
        made = model.detokenize(codes)
        bits = codes[0].numel() * model.quantize.code_groups * math.log2(size)
        rows[f"K = {size}\n{math.ceil(bits / 8):,} bytes"] = made
        captions.append([f"{psnr:.1f} dB" for psnr in image_quality(made, images)["psnr"]])
    model.select_codebook(selected)
    Image.fromarray(image_grid([*rows.values()], [*rows], captions, shown_side=SHOWN_SIDE)).save(path)


def save_code_maps(path: str | os.PathLike, images: Tensor, codes: Tensor, code_latents: Tensor) -> None:
    """Save images above their codes, which have similar colours if their latents [B, h, w, d] are similar."""
    factor = images.shape[-1] // codes.shape[2]
    colours = code_colours(code_latents).movedim(-1, 1) * 2 - 1
    maps = colours.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    told = f"{codes[0].numel()} codes each,\n{len(codes.unique())} different.\nSimilar codes have\nsimilar colours"
    picture = image_grid([as_rgb(images), maps], ["original", told], shown_side=SHOWN_SIDE)
    Image.fromarray(picture).save(path)


def save_training_curves(path: str | os.PathLike, log: MetricsLog) -> None:
    """Save plots of the loss, PSNR, code usage, displacement and quantization error over the steps."""
    with drawn_figure(path, 2, 2, panel=(5.5, 3.2)) as (_, panels):
        _draw_training(panels, log)


def _draw_training(panels: np.ndarray, log: MetricsLog) -> None:
    """Draw the plots on panels [2, 2]."""
    loss, psnr, usage, scale = panels.flat
    loss.plot(*log.column("loss/l1"), linewidth=0.8, label="L1")
    loss.set(yscale="log", title="Training loss")
    psnr.plot(*log.column("validation/psnr"), marker="o", label="quantized")
    psnr.plot(*log.column("validation/psnr_unquantized"), marker="o", label="not quantized")
    psnr.set_title(f"{METRIC_LABELS['psnr'].heading}, of held-out crops")
    usage.plot(*log.column("validation/code_usage"), marker="o", label="held-out crops")
    usage.set(ylim=(0, 1), title=METRIC_LABELS["code_usage"].heading)
    for name, label in (("displacement", "displacement"), ("quantization_error", "quantization error")):
        scale.plot(*log.column(f"quantizer/{name}_rms"), linewidth=0.8, label=label)
    scale.set(title="Root mean square length, in units of the latents")
    for axis in (loss, psnr, usage, scale):
        axis.set_xlabel("step")
        axis.legend()
