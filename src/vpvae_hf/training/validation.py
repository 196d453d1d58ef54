"""Validation while a tokenizer trains."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from vpvae_hf import distributed
from vpvae_hf.codebook import fit_kmeans
from vpvae_hf.evaluation import evaluate_reconstruction, image_grid, reconstruct

from .config import TrainingConfig
from .splits import TrainingData

# A preview codebook shows how training goes; the one that is published is fitted more carefully, to fresh latents.
_PREVIEW_ITERATIONS = 10


class Validation:
    """Measures a model while it trains, and shows the same images each time."""

    def __init__(self, model, data: TrainingData, output: Path, config: TrainingConfig, accelerator: Accelerator):
        self._model, self._data, self._output, self._accelerator = model, data, output, accelerator
        self._images, pictures = config.data.validation_images, config.validation_pictures
        self._shown = None
        if data.validates and pictures and accelerator.is_main_process:
            self._shown = torch.cat(list(data.held_out(pictures * accelerator.num_processes)))[:pictures]

    def measure(self, step: int) -> dict[str, float]:
        """Quality with the codebook that the queue would give now; nothing while the queue is too short for one."""
        codebook = preview_codebook(self._model.quantize)
        batches = self._data.held_out(self._images)
        figures = validation_figures(self._model, batches, codebook, across_ranks=True)
        picture = self.picture(codebook) if figures else None
        if picture is not None:
            folder = self._output / "validation"
            folder.mkdir(exist_ok=True)
            Image.fromarray(picture).save(folder / f"step-{step:07d}.png")
            for tracker in self._accelerator.trackers:
                if hasattr(tracker, "log_images"):
                    tracker.log_images({"validation": picture[None]}, step=step, dataformats="NHWC")
        return figures

    def picture(self, codebook: Tensor | None = None) -> np.ndarray | None:
        """[height, width, 3] uint8: originals above reconstructions, not quantized and from codes."""
        if self._shown is None:
            return None
        made = reconstruct(self._model, self._shown.to(self._accelerator.device), codebook)
        return image_grid([self._shown, made.unquantized, made.quantized])


def preview_codebook(quantizer) -> Tensor | None:
    """A codebook [K, d] of the latents in the queue, the same on all ranks.

    None where the codes are fixed, or while the queue is too short for one.
    """
    if not quantizer.needs_fitting:
        return None
    latents = quantizer.queue.latents()
    if len(torch.unique(latents, dim=0)) < quantizer.codebook_size:
        return None
    preview = fit_kmeans(latents, quantizer.codebook_size, max_iterations=_PREVIEW_ITERATIONS)
    return distributed.from_first_rank(preview.centroids)


def validation_figures(
    model, batches: Iterable[Tensor], codebook: Tensor | None, *, across_ranks: bool
) -> dict[str, float]:
    """Figures of `evaluate_reconstruction`, by name; none while a codebook is needed and there is none."""
    if model.quantize.needs_fitting and codebook is None:
        return {}
    return evaluate_reconstruction(model, batches, codebook, across_ranks=across_ranks).figures()
