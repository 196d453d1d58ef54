"""Reads what the folder of a saved tokenizer holds, and its results, from the files alone."""

import importlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from safetensors import SafetensorError, safe_open

from vpvae_hf.files import read_json
from vpvae_hf.quantizers import QuantizerConfig, quantizer_config

CARD, CONFIG, RESULTS, PICTURE = "README.md", "config.json", "results.json", "reconstruction.png"

# NAME[.VARIANT].safetensors, a shard or the index of such a file, or the same with pickled weights (.bin). In an index
# the variant follows the word "index"; in shards that older releases of diffusers wrote it follows their number.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(\.[\w-]+?)?(?:-\d{5}-of-\d{5})?(\.[\w-]+)?\.(?:safetensors|bin)(?:\.index(\.[\w-]+)?\.json)?"
)


# Fields that hold names and texts, which are not paths even if they look like one, such as the class "/m/01yrx".
_WORDS = ("condition_names", "sample_conditions")
# safetensors' name of a dtype -> torch's name.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class HubEntry:
    """How the Hub shows the models of a class of tokenizers.

    Attributes:
        name: the kind of signal, e.g. "image"; `model_cards/{name}.md` is the card's template, if there is one.
        library: the library whose models the class derives from.
        task: task under which results are listed.
        items: what an evaluation counts, e.g. "images"; also the key of that number in results.json.
        sounds: title -> file that the card plays if the folder has it.
        downsampling: config -> f, the values along each axis of the signal that one code stands for.
    """

    name: str
    library: str
    task: str
    items: str
    sounds: Mapping[str, str] = field(default_factory=dict)
    downsampling: Callable[[dict[str, Any]], int]


# Entries by the name of the model class; each class adds its own when it is defined.
HUB_ENTRIES: dict[str, HubEntry] = {}


def hub_entry(class_name: str | None) -> HubEntry | None:
    """The entry of a class of tokenizers; None if there is no such class."""
    if class_name is not None and class_name not in HUB_ENTRIES:
        # The package imports a public class when it is first used.
        getattr(importlib.import_module("vpvae_hf"), class_name, None)
    return HUB_ENTRIES.get(class_name)


def class_of(config: dict[str, Any]) -> str | None:
    """The class of models that a config names, as diffusers records it, or else as transformers does."""
    if not isinstance(config, dict):
        return None
    return config.get("_class_name") or next(iter(config.get("architectures") or []), None) or config.get("model_type")


@dataclass(frozen=True, kw_only=True)
class SavedTokenizer:
    """A saved tokenizer.

    Attributes:
        class_name: the class of models that its config names.
        config: the content of its config.json.
        quantizer: the quantizer's settings in that config.
        results: the content of its results.json; empty if there is none.
        parameters: number of values in the weights, codebook included; None if they are pickled.
        variants: dtype of the weights by variant, "" for weights without one; None if they are pickled.
    """

    folder: Path
    class_name: str
    config: dict[str, Any]
    results: dict[str, Any]
    quantizer: QuantizerConfig
    entry: HubEntry
    parameters: int | None
    variants: dict[str, str | None]

    @property
    def variant(self) -> str | None:
        """The variant that `from_pretrained` needs to load weights; None if there are weights without a variant."""
        return None if "" in self.variants else next(iter(self.variants))

    @property
    def files(self) -> list[Path]:
        """The folder's files, without hidden files and sub-folders, which hold saves and training state."""
        return sorted(path for path in self.folder.iterdir() if path.is_file() and not path.name.startswith("."))


def read_saved(folder: str | os.PathLike) -> SavedTokenizer:
    """Read the folder of a saved tokenizer.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder holds no saved tokenizer, or one of its files is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; name the one that save_pretrained wrote")
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder} is no saved tokenizer: it has no {CONFIG}; name the folder save_pretrained wrote")
    config = read_json(folder / CONFIG)
    name = class_of(config)
    entry = hub_entry(name)
    if entry is None:
        raise ValueError(
            f"{folder} is no saved tokenizer: its {CONFIG} is of the class {name}; name the folder that the "
            "save_pretrained of a tokenizer of this package wrote"
        )
    results, weights = folder / RESULTS, _read_weights(folder)
    return SavedTokenizer(
        folder=folder,
        class_name=name,
        config=config,
        quantizer=quantizer_config(config["quantizer"]),
        results=read_json(results) if results.exists() else {},
        entry=entry,
        # All variants are of the same model.
        parameters=next((counts.total() for counts in weights.values() if counts), None),
        variants={name: counts.most_common(1)[0][0] if counts else None for name, counts in weights.items()},
    )


def read_results(folder: str | os.PathLike) -> dict[str, Any]:
    """The results in a saved tokenizer's folder; empty if there are none, or for a hub id."""
    return read_saved(folder).results if Path(folder).is_dir() else {}


def strip_local_paths(value: Any) -> Any:
    """JSON data with absolute paths cut to their last part, since the rest describes a computer, not the model."""
    if isinstance(value, dict):
        return {name: item if name in _WORDS else strip_local_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [strip_local_paths(item) for item in value]
    if isinstance(value, str) and (
        value.startswith("~") or PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
    ):
        return PureWindowsPath(value).name
    return value


def weights_set(name: str) -> str | None:
    """The variant of the weights that a file is part of, such as ".fp16", or ""; None if it holds no weights.

    It is the same for all shards and the index of a model, in either format and from either library.
    """
    named = _WEIGHTS.fullmatch(name)
    return None if named is None else "".join(part or "" for part in named.groups())


def _read_weights(folder: Path) -> dict[str, Counter[str]]:
    """Number of values of each dtype in the weights of each variant; empty counts for pickled weights."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".bin")]
    sets = {file: weights_set(file.name) for file in files}
    if set(sets.values()) <= {None}:
        raise ValueError(f"{folder} has no weights (*model.safetensors); save the model with save_pretrained")
    found: dict[str, Counter[str]] = {}
    for file, name in sorted(sets.items(), key=lambda each: (each[1] or "", each[0])):
        if name is None:
            continue
        counts = found.setdefault(name.removeprefix("."), Counter())
        if file.suffix != ".safetensors":  # opening a pickled file would run code in it
            continue
        try:
            with safe_open(file, "numpy") as weights:
                for key in weights.keys():  # noqa: SIM118
                    tensor = weights.get_slice(key)
                    counts[_DTYPES.get(tensor.get_dtype(), "other")] += math.prod(tensor.get_shape())
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or cut short ({error}); save the model again") from error
    return found
