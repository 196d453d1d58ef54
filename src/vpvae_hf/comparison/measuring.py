"""Measures each column of a trained run on each domain, and a familiar codec on the same items.

What has been measured is not measured again.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from vpvae_hf.files import read_json, write_json
from vpvae_hf.metrics import MetricFn, ReconstructionQuality
from vpvae_hf.metrics.codecs import Codec, CodecUnavailableError
from vpvae_hf.modalities import Batches, load_tokenizer, modality_of
from vpvae_hf.modalities.config import DataConfig, TrainingConfig
from vpvae_hf.training.fit import fit_codebook

from .columns import COLUMNS, Column
from .config import Comparison, DataSplit, Measurement

_log = logging.getLogger(__name__)

# Stored decimals of PSNR in dB and of other metrics: far finer than the differences between items, and small to store.
_DECIMALS = 4


@dataclasses.dataclass(frozen=True)
class Piece:
    """A column of a run, or a codec, to be measured on a domain.

    Attributes:
        column: a name in `COLUMNS`; "codec" for a codec.
        domain: a name in `Comparison.domains`.
        file: for the result.
        settings: what the result depends on in addition to tokenizer and codec; a result of other settings is replaced.
    """

    column: str
    domain: str
    file: Path
    settings: dict[str, Any]

    def read(self) -> dict[str, Any] | None:
        """The result in the file; None if there is none, or only one of other settings."""
        held = read_json(self.file) if self.file.exists() else None
        return held if held is not None and held["settings"] == self.settings else None


def pieces_of(comparison: Comparison, folder: Path, columns: list[str]) -> Iterator[Piece]:
    """What is to be measured of a run: column by column, since the first columns are the cheapest."""
    for name in columns:
        for domain, split in comparison.domains.items():
            settings = _settings(COLUMNS[name], comparison.measure, split)
            yield Piece(name, domain, folder / f"measured/{domain}-{name}.json", settings)


def measure(
    piece: Piece, comparison: Comparison, config: TrainingConfig, tokenizer: Path, folder: Path, codebook_size: int
) -> None:
    """Measure a piece of a run, and write its result.

    Args:
        config: the run's training settings; their data set is measured unless the domain names another.
        tokenizer: the folder of the run's tokenizer.
        folder: the run's folder, where tokenizers with refitted codebooks are saved.
        codebook_size: K of the codebook to fit if the tokenizer has none.
    """
    began, how, column = time.perf_counter(), comparison.measure, COLUMNS[piece.column]
    if column.is_refitted:
        tokenizer = _refitted(tokenizer, column.codebook, folder, config, how.fitted_latents, codebook_size)
    model = load_tokenizer(tokenizer)
    modality = modality_of(model)
    data = _data(config.data, comparison.domains[piece.domain])
    batches = Batches(modality, model, data, batch_size=config.train_batch_size)
    # Metrics that need a network are measured only if training lowers them.
    settings: dict[str, Any] = {"extra": modality.lowered_metrics(config), "unquantized": False}
    if column.codebook is None:
        settings["quantized"] = False
    if column.refined:
        settings["refine_steps"] = how.refine_steps
    quality = modality.evaluate(model, batches.evaluation(piece.settings["examples"]), **settings)
    seconds = time.perf_counter() - began
    write_json(piece.file, {"settings": piece.settings, **_result(quality), "seconds": round(seconds, 1)})


def codec_pieces(comparison: Comparison) -> list[Piece]:
    """What is to be measured of the modality's codec."""
    folder, how = comparison.output_dir / "codec", comparison.measure
    return [
        Piece("codec", domain, folder / f"{domain}.json", _settings(COLUMNS["continuous"], how, split))
        for domain, split in comparison.domains.items()
    ]


def codec_reaches(piece: Piece, rate: float) -> bool:
    """Whether a codec has been measured up to a rate, in the modality's unit, or up to its largest files."""
    held = _codec_held(piece)
    return held["is_whole"] or any(point["rate"] >= rate for point in held["points"])


def measure_codec(
    pieces: Iterable[Piece],
    comparison: Comparison,
    config: TrainingConfig,
    tokenizer: Path,
    rate: float,
    record: dict[str, Any],
) -> None:
    """Measure the modality's codec, if it has one, from the smallest files up to a rate, and write each piece's file.

    Points that have been measured stay. If the codec cannot write files here, the pieces' files say why.

    Args:
        config, tokenizer: those of a run: items are read as for its model.
        rate: in the modality's unit.
        record: the settings that decide which items the runs read; they are kept in the files.
    """
    model = load_tokenizer(tokenizer)
    modality = modality_of(model)
    try:
        codec = modality.codec(model)
    except CodecUnavailableError as error:
        _log.warning("no familiar codec is compared: %s", error)
        for piece in pieces:
            write_json(piece.file, {**_codec_held(piece), "record": record, "why_not": str(error)})
        return
    if codec is None:
        return
    metric_fn = modality.metric_fn(model)
    for piece in pieces:
        data = _data(config.data, comparison.domains[piece.domain])
        batches = Batches(modality, model, data, batch_size=config.train_batch_size)
        held = _codec_held(piece)
        points, seconds = held["points"], held["seconds"]
        for setting in codec.ladder[len(points) :]:
            if codec_reaches(piece, rate):
                break
            began = time.perf_counter()
            points.append(_codec_point(codec, setting, batches.evaluation(piece.settings["examples"]), metric_fn))
            seconds += time.perf_counter() - began
            told = {"codec": codec.name, "is_whole": len(points) == len(codec.ladder), "points": points}
            told |= {"settings": piece.settings, "record": record, "seconds": round(seconds, 1)}
            write_json(piece.file, told)


def _codec_held(piece: Piece) -> dict[str, Any]:
    """What has been measured of a codec; without points if that is nothing."""
    return piece.read() or {"settings": piece.settings, "is_whole": False, "points": [], "seconds": 0.0}


def _codec_point(codec: Codec, setting: int, batches: Iterable[torch.Tensor], metric_fn: MetricFn) -> dict[str, Any]:
    """The rate of all files together, and means over items."""
    bits, extent, values = 0, 0.0, {}
    for batch in batches:
        files = [codec.encode(signal, setting) for signal in batch]
        made = torch.stack([codec.decode(file, signal) for file, signal in zip(files, batch, strict=True)])
        for name, each in metric_fn(made.to(batch.device), batch).items():
            values.setdefault(name, []).append(each.double().cpu())
        bits += 8 * sum(map(len, files))
        extent += sum(map(codec.extent, batch))
    metrics = {name: float(torch.cat(each).nanmean()) for name, each in values.items()}
    return {"setting": setting, "rate": bits / extent, "metrics": _for_json(metrics)}


def _settings(column: Column, how: Measurement, split: DataSplit) -> dict[str, Any]:
    examples = how.examples if not column.refined or how.refined_examples is None else how.refined_examples
    # Only the last part of its path, since folders may be moved.
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
    return {
        "metrics": _for_json(quality.metrics),
        "tokens": quality.tokens,
        "items": {name: _rounded(values) for name, values in quality.item_values.items()},
    }


def _for_json(metrics: dict[str, float]) -> dict[str, float | None]:
    """Means for JSON, which has no NaN: None in its place."""
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def _rounded(values: torch.Tensor) -> list[float | None]:
    return [None if math.isnan(value) else round(value, _DECIMALS) for value in values.tolist()]
