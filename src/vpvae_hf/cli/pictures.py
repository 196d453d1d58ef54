"""Pictures of what a tokenizer does with images [B, C, H, W] in [-1, 1] and their codes [B, h, w]."""

import os

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from vpvae_hf.metric_labels import METRIC_LABELS
from vpvae_hf.metrics.pictures import as_rgb
from vpvae_hf.training.trainer import MetricsLog


def save_reconstructions(path: str | os.PathLike, rows: dict[str, Tensor]) -> None:
    """One row of images [B, C, H, W] per name, one column per image."""
    count = len(next(iter(rows.values())))
    figure, axes = _grid(len(rows), count, title=None)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(_displayed(image))
        line[0].set_ylabel(name)
    _save(figure, path)


def save_code_maps(path: str | os.PathLike, images: Tensor, codes: Tensor, code_latents: Tensor) -> None:
    """Images above their codes. A code's colour is the first three dimensions of its latent, of `code_latents`
    [B, h, w, d]: similar codes look alike.
    """
    colours = torch.nn.functional.pad(code_latents[..., :3], (0, max(0, 3 - code_latents.shape[-1])))
    low, high = colours.flatten(0, 2).quantile(torch.tensor([0.02, 0.98]), dim=0)
    colours = ((colours - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    used = len(codes.unique())
    title = f"{codes[0].numel()} codes per image, {used} different codes shown; colour: the code's latent"
    figure, axes = _grid(2, len(images), title)
    for image, colour, top, bottom in zip(images, colours, *axes, strict=True):
        top.imshow(_displayed(image))
        bottom.imshow(colour.numpy(), interpolation="nearest")
    axes[0][0].set_ylabel("original")
    axes[1][0].set_ylabel("codes")
    _save(figure, path)


def save_training_curves(path: str | os.PathLike, log: MetricsLog) -> None:
    """Loss, PSNR, code usage, and displacement against quantization error over the steps."""
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    loss, psnr, usage, scale = figure.subplots(2, 2, sharex=True).flat
    loss.plot(*log.column("loss/l1"), linewidth=0.8, label="L1")
    loss.set(yscale="log", title="Training loss")
    psnr.plot(*log.column("validation/psnr"), "o-", label="quantized")
    psnr.plot(*log.column("validation/psnr_unquantized"), "o-", label="not quantized")
    psnr.set_title(f"{METRIC_LABELS['psnr'].heading}, of held-out crops")
    usage.plot(*log.column("validation/code_usage"), "o-", label="held-out crops")
    usage.set(ylim=(0, 1), title=METRIC_LABELS["code_usage"].heading, xlabel="step")
    for name, label in (("displacement", "displacement"), ("quantization_error", "quantization error")):
        scale.plot(*log.column(f"quantizer/{name}_rms"), linewidth=0.8, label=label)
    scale.set(title="Root mean square length, in units of the latents", xlabel="step")
    for axis in (loss, psnr, usage, scale):
        axis.grid(alpha=0.3)
        axis.legend()
    _save(figure, path)


def _grid(rows: int, columns: int, title: str | None) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(1.5 * columns + 0.5, 1.5 * rows + (0.5 if title else 0)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    if title:
        figure.suptitle(title)
    return figure, axes


def _displayed(image: Tensor) -> np.ndarray:
    """[H, W, 3] in [0, 1]."""
    return ((as_rgb(image) + 1) / 2).movedim(0, -1).numpy()


def _save(figure: Figure, path: str | os.PathLike) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)
