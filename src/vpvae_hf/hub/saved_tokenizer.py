"""What the folder of a saved tokenizer holds, read from its files alone."""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

CARD, CONFIG, RESULTS, PICTURE = "README.md", "config.json", "results.json", "reconstruction.png"


@dataclass(frozen=True, kw_only=True)
class Modality:
    """What differs between tokenizers of images and of anything else.

    Attributes:
        name: as in `model_cards/usage_{name}.md`.
        library: the library whose `from_pretrained` reads the folder.
        pipeline_tag: task under which the Hub lists the model.
        task: task under which results are listed.
    """

    name: str
    library: str
    pipeline_tag: str
    task: str


# By the `_class_name` of the config.
_MODALITIES = {
    "AutoencoderVP": Modality(
        name="image", library="diffusers", pipeline_tag="image-feature-extraction", task="image-reconstruction"
    )
}


@dataclass(frozen=True, kw_only=True)
class SavedTokenizer:
    """A saved tokenizer.

    Attributes:
        config: the content of its config.json.
        results: the content of its results.json; empty where there is none.
        parameters: number of values in the weights, codebook included; None where they are pickled.
    """

    folder: Path
    config: dict[str, Any]
    results: dict[str, Any]
    modality: Modality
    parameters: int | None

    @property
    def quantizer(self) -> dict[str, Any]:
        return self.config["quantizer"]

    @property
    def is_fitted(self) -> bool:
        return self.quantizer["fitted"]

    @property
    def files(self) -> list[Path]:
        """The folder's own files. Neither hidden ones nor sub-folders: those hold saves and training state."""
        return sorted(path for path in self.folder.iterdir() if path.is_file() and not path.name.startswith("."))


def read_saved(folder: str | os.PathLike) -> SavedTokenizer:
    """Read the folder of a saved tokenizer.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is no saved tokenizer, or a file of it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; name the one that save_pretrained wrote")
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder} is no saved tokenizer: it has no {CONFIG}; name the folder save_pretrained wrote")
    config = _read_json(folder / CONFIG)
    name = config.get("_class_name")
    if name not in _MODALITIES:
        raise ValueError(
            f"{folder} is no saved tokenizer: its {CONFIG} says _class_name = {name!r}; known: {', '.join(_MODALITIES)}"
        )
    results = folder / RESULTS
    return SavedTokenizer(
        folder=folder,
        config=config,
        results=_read_json(results) if results.exists() else {},
        modality=_MODALITIES[name],
        parameters=_count_parameters(folder),
    )


def weights_set(name: str) -> str | None:
    """Which weights a file belongs to: those without a variant or those of one; None where it holds no weights.

    All shards and the index of a model have the same set, in either format.
    """
    if not re.fullmatch(r"diffusion_pytorch_model.*\.(safetensors|bin|json)", name):
        return None
    return re.sub(r"-\d{5}-of-\d{5}|\.index|\.safetensors|\.bin|\.json", "", name)


def _count_parameters(folder: Path) -> int | None:
    sets: dict[str, int | None] = {}
    for file in sorted(folder.iterdir()):
        name = weights_set(file.name)
        if name is None or file.suffix == ".json":
            continue
        if file.suffix == ".bin":
            sets[name] = None
        else:
            sets[name] = sets.get(name, 0) + _count_values(file)
    if not sets:
        raise ValueError(f"{folder} has no weights (diffusion_pytorch_model*); save the model with save_pretrained")
    # All of them are the same model.
    return next(iter(sets.values()))


def _count_values(file: Path) -> int:
    try:
        with safe_open(file, "numpy") as weights:
            return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or cut short ({error}); save the model again") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no valid JSON ({error}); save the model again") from error
