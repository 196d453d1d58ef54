"""Validation while a tokenizer trains."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from vpvae_hf import distributed
from vpvae_hf.codebook import fit_kmeans
from vpvae_hf.metrics import (
    MetricFn,
    Reconstruction,
    ReconstructionQuality,
    evaluate_reconstruction,
    reconstruct,
)

from .config import TrainingConfig
from .modality import Modality
from .splits import TrainingData

# A preview codebook shows how training goes; the one that is published is fitted more carefully, to fresh latents.
_PREVIEW_ITERATIONS = 10


class Validation:
    """Measures a model while it trains and in the end, and shows the same examples each time."""

    def __init__(
        self,
        modality: Modality,
        model,
        data: TrainingData,
        output: Path,
        config: TrainingConfig,
        accelerator: Accelerator,
    ):
        self._modality, self._model, self._data = modality, model, data
        self._output, self._config, self._accelerator = output, config, accelerator
        self._shown = None
        if data.validates:
            modality.quality(model, config, final=True)  # so that what it lacks shows before training
        if data.validates and config.validation_pictures and accelerator.is_main_process:
            self._shown = data.shown(config.validation_pictures)

    def measure(self, step: int) -> dict[str, float]:
        """MetricFn with the codebook that the queue would give now, or with that of a model whose codebook stays.

        Nothing while the queue is too short for a codebook.
        """
        codebook = None
        if self._model.quantize.needs_fitting and self._config.train_only is None:
            codebook = preview_codebook(self._model.quantize)
            if codebook is None:
                return {}
        figures = self._evaluated(self._config.data.validation_examples, codebook, final=False).metrics
        picture = self.picture(codebook)
        if picture is not None:
            folder = self._output / "validation"
            folder.mkdir(exist_ok=True)
            Image.fromarray(picture).save(folder / f"step-{step:07d}.png")
            for tracker in self._accelerator.trackers:
                if hasattr(tracker, "log_images"):
                    tracker.log_images({"validation": picture[None]}, step=step, dataformats="NHWC")
        return figures

    def measure_all(self) -> ReconstructionQuality | None:
        """MetricFn of the finished tokenizer on the whole split; None where there is none."""
        return self._evaluated(None, None, final=True) if self._data.validates else None

    def picture(self, codebook: Tensor | None = None) -> np.ndarray | None:
        """[height, width, 3] uint8: originals above reconstructions, not quantized and from codes."""
        return None if self._shown is None else self._pictured(self._reconstructed(codebook))

    def write_examples(self, folder: Path) -> None:
        """Write what the model card shows and plays into a saved tokenizer's folder."""
        if self._shown is None:
            return
        made = self._reconstructed(None)
        Image.fromarray(self._pictured(made)).save(folder / "reconstruction.png")
        self._modality.write_sounds(folder, self._shown, made.quantized, self._model)

    def _reconstructed(self, codebook: Tensor | None) -> Reconstruction:
        return reconstruct(self._model, self._shown.to(self._accelerator.device), codebook)

    def _pictured(self, made: Reconstruction) -> np.ndarray:
        return self._modality.picture([self._shown, made.unquantized, made.quantized], self._model)

    def _evaluated(self, limit: int | None, codebook: Tensor | None, *, final: bool) -> ReconstructionQuality:
        quality: MetricFn = self._modality.quality(self._model, self._config, final=final)
        return evaluate_reconstruction(
            self._model,
            self._data.held_out(limit),
            codebook,
            metric_fn=quality,
            unquantized=self._modality.unquantized,
            across_ranks=True,
        )


def preview_codebook(quantizer) -> Tensor | None:
    """A codebook [K, d] of the latents in the queue, the same on all ranks.

    None where the codes are fixed, or while the queue is too short for one.
    """
    if not quantizer.needs_fitting:
        return None
    latents = quantizer.recent_latents()
    if len(torch.unique(latents, dim=0)) < quantizer.codebook_size:
        return None
    preview = fit_kmeans(latents, quantizer.codebook_size, max_iterations=_PREVIEW_ITERATIONS)
    return distributed.from_first_rank(preview.centroids)
