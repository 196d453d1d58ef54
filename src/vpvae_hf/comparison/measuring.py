"""What a trained run is measured by: each column on each domain, once; what is there is not measured again."""

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vpvae_hf.files import read_json, write_json
from vpvae_hf.metrics import ReconstructionQuality
from vpvae_hf.modalities import Batches, load_tokenizer, modality_of
from vpvae_hf.modalities.config import DataConfig, TrainingConfig
from vpvae_hf.training.fit import fit_codebook

from .columns import COLUMNS, Column
from .config import Comparison, DataSplit, Measurement

# PSNR in dB, and others about as fine: far below what items differ by, and small to keep.
_DECIMALS = 4


@dataclasses.dataclass(frozen=True)
class Piece:
    """A column of a run, to be measured on a domain.

    Attributes:
        column: a name in `COLUMNS`.
        domain: a name in `Comparison.domains`.
        file: for the result.
        settings: what the result depends on besides the tokenizer; another result in the file is measured anew.
    """

    column: str
    domain: str
    file: Path
    settings: dict[str, Any]

    def read(self) -> dict[str, Any] | None:
        """What was measured; None if nothing was, or with other settings."""
        held = read_json(self.file) if self.file.exists() else None
        return held if held is not None and held["settings"] == self.settings else None


def pieces_of(comparison: Comparison, folder: Path, columns: list[str]) -> Iterator[Piece]:
    """What is to be measured of a run: column by column, as the first are the cheapest."""
    for name in columns:
        for domain, split in comparison.domains.items():
            settings = _settings(COLUMNS[name], comparison.measure, split)
            yield Piece(name, domain, folder / f"measured/{domain}-{name}.json", settings)


def measure(
    piece: Piece, comparison: Comparison, config: TrainingConfig, tokenizer: Path, folder: Path, codebook_size: int
) -> None:
    """Measure a piece of a run, and write its result.

    Args:
        config: settings of the run's training, whose data set is that of the domain unless it names another.
        tokenizer: the run's.
        folder: the run's, for tokenizers with refitted codebooks.
        codebook_size: K of a codebook for a tokenizer that has none.
    """
    began, how, column = time.perf_counter(), comparison.measure, COLUMNS[piece.column]
    if column.is_refitted:
        tokenizer = _refitted(tokenizer, column.codebook, folder, config, how.fitted_latents, codebook_size)
    model = load_tokenizer(tokenizer)
    modality = modality_of(model)
    data = _data(config.data, comparison.domains[piece.domain])
    batches = Batches(modality, model, data, batch_size=config.train_batch_size)
    # With those that need a network only if training lowers them.
    settings: dict[str, Any] = {"extra": modality.lowered_metrics(config), "unquantized": False}
    if column.codebook is None:
        settings["quantized"] = False
    if column.refined:
        settings["refine_steps"] = how.refine_steps
    quality = modality.evaluate(model, batches.evaluation(piece.settings["examples"]), **settings)
    seconds = time.perf_counter() - began
    write_json(piece.file, {"settings": piece.settings, **_result(quality), "seconds": round(seconds, 1)})


def _settings(column: Column, how: Measurement, split: DataSplit) -> dict[str, Any]:
    examples = how.examples if not column.refined or how.refined_examples is None else how.refined_examples
    # By the last part of its path, as folders move.
    name = None if split.name is None else Path(split.name).name
    settings = {"data": [name, split.config, split.column, split.split], "examples": examples}
    if column.is_refitted:
        settings["fitted_latents"] = how.fitted_latents
    if column.refined:
        settings["refine_steps"] = how.refine_steps
    return settings


def _data(data: DataConfig, split: DataSplit) -> DataConfig:
    """The settings that a domain is read with: its `validation_split` is measured."""
    if split.name is None:
        return dataclasses.replace(data, validation_split=split.split)
    where = {"name": split.name, "config": split.config, "column": split.column, "revision": None}
    return dataclasses.replace(data, **where, validation_name=None, validation_split=split.split)


def _refitted(
    tokenizer: Path, metric: str, folder: Path, config: TrainingConfig, fitted_latents: int, codebook_size: int
) -> Path:
    """A tokenizer with a codebook refitted to latents of the training data."""
    output = folder / f"refitted-{metric}"
    record, settings = output / "fit.json", {"metric": metric, "fitted_latents": fitted_latents}
    if record.exists() and read_json(record)["settings"] == settings:
        return output
    record.unlink(missing_ok=True)
    model = load_tokenizer(tokenizer)
    if not model.quantize.has_codes:
        model.set_quantizer({"kind": "vp", "codebook_size": codebook_size, "latent_dim": model.quantize.latent_dim})
    batches = Batches(modality_of(model), model, config.data, batch_size=config.train_batch_size)
    per_code = math.ceil(fitted_latents / model.quantize.codebook_size)
    how = {"latents_per_code": per_code, "metric": metric, "seed": config.seed}
    fit = fit_codebook(model, batches.fitting(config.seed + 1), **how)  # another order than in training
    model.save_pretrained(output)
    write_json(record, {"settings": settings, **dataclasses.asdict(fit)})
    return output


def _result(quality: ReconstructionQuality) -> dict[str, Any]:
    """For JSON, which has no NaN."""
    return {
        "metrics": {name: None if math.isnan(value) else value for name, value in quality.metrics.items()},
        "tokens": quality.tokens,
        "items": {name: _rounded(values) for name, values in quality.item_values.items()},
    }


def _rounded(values: torch.Tensor) -> list[float | None]:
    return [None if math.isnan(value) else round(value, _DECIMALS) for value in values.tolist()]
