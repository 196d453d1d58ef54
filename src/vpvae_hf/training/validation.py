"""Validation while a tokenizer trains."""

import logging
import math
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from vpvae_hf.metrics import ReconstructionQuality, reconstruct
from vpvae_hf.modalities import Batches, Modality
from vpvae_hf.modalities.code_files import code_bits
from vpvae_hf.modalities.config import TrainingConfig
from vpvae_hf.models.tokenizer import Tokenizer

from .hardware import untuned
from .trackers import log_picture

_log = logging.getLogger(__name__)


class Validation:
    """Measures a model during training and at its end, and shows the same items each time."""

    def __init__(
        self,
        modality: Modality,
        model: Tokenizer,
        batches: Batches,
        output: Path,
        config: TrainingConfig,
        accelerator: Accelerator,
    ):
        self._modality, self._model, self._batches = modality, model, batches
        self._output, self._config, self._accelerator = output, config, accelerator
        # Metrics that are also losses of this run. They need a network, so they are measured only at the end.
        self._extra = modality.lowered_metrics(config)
        self._shown = None
        if batches.validates:
            modality.metric_fn(model, self._extra)  # so that a missing library is reported before training
            if config.validation_pictures and accelerator.is_main_process:
                self._shown = batches.shown(config.validation_pictures)

    @untuned()
    def measure(self, step: int) -> dict[str, float]:
        """Metrics with the live codebook if the model is fitted after training, otherwise with its own codebook.

        They are empty while a live codebook is needed and there is none yet.
        """
        codebook = None
        if self._model.quantize.needs_fitting and self._config.train_only is None:
            codebook = self._model.quantize.live_codebook()
            if codebook is None:
                return {}
        validated = self._batches.evaluation(self._config.data.validation_examples)
        metrics = self._modality.evaluate(self._model, validated, codebook, across_ranks=True).metrics
        if self._shown is not None:
            _, picture = self._reconstructed(codebook)
            folder = self._output / "validation"
            try:
                folder.mkdir(exist_ok=True)
                Image.fromarray(picture).save(folder / f"step-{step:07d}.png")
            except OSError as error:  # a run is worth more than a picture
                _log.error("no picture at step %d: %s. Training goes on; make room in %s", step, error, folder)
            log_picture(self._accelerator, "validation", picture, step)
        return metrics

    @untuned()
    def measure_all(self) -> ReconstructionQuality | None:
        """Quality of the finished tokenizer on the whole validation split; None if there is no such split."""
        if not self._batches.validates:
            return None
        batches = self._batches.evaluation()
        return self._modality.evaluate(self._model, batches, extra=self._extra, across_ranks=True)

    @untuned()
    def write_examples(self, folder: Path) -> None:
        """Write the picture and sounds of the model card into a saved tokenizer's folder."""
        if self._shown is None:
            return
        reconstruction, picture = self._reconstructed(None)
        Image.fromarray(picture).save(folder / "reconstruction.png")
        self._modality.write_sounds(folder, self._shown, reconstruction, self._model)

    def _reconstructed(self, codebook: Tensor | None) -> tuple[Tensor, np.ndarray]:
        """Reconstructions of the shown items from codes, and a picture of them."""
        return reconstructions_picture(self._modality, self._model, self._shown, codebook)


def reconstructions_picture(
    modality: Modality, model: Tokenizer, originals: Tensor, codebook: Tensor | None = None
) -> tuple[Tensor, np.ndarray]:
    """Reconstructions [B, ...] of items [B, ...] from their codes, and a labelled picture [height, width, 3] uint8.

    The picture shows the originals, then their reconstructions without quantization, then those from codes, if there
    are any. Captions show how near the reconstructions are, and how many bytes the codes take.

    Args:
        codebook: [K, d] in place of the model's own.
    """
    made = reconstruct(model, originals, codebook)
    rows = {"original": originals, "not quantized": made.unquantized}
    captions = [[], modality.quality_captions(made.unquantized, originals, model)]
    if made.codes is not None:
        size = model.quantize.codebook_size if codebook is None else len(codebook)
        rows[f"{size} codes"] = made.quantized
        stored = f"{math.ceil(code_bits(made.codes[0], size) / 8):,} bytes"
        captions.append([f"{near}\n{stored}" for near in modality.quality_captions(made.quantized, originals, model)])
    return made.quantized, modality.picture([*rows.values()], model, [*rows], captions)
