"""What the folder of a saved tokenizer holds, read from its files alone."""

import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vpvae_hf.files import read_json

from .modality import MODALITIES, Modality

CARD, CONFIG, RESULTS, PICTURE = "README.md", "config.json", "results.json", "reconstruction.png"


# NAME[.VARIANT].safetensors, a shard or the index of such, or the same pickled. The variant of an index follows that
# word, and that of shards which older releases of diffusers wrote follows their number.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(\.[\w-]+?)?(?:-\d{5}-of-\d{5})?(\.[\w-]+)?\.(?:safetensors|bin)(?:\.index(\.[\w-]+)?\.json)?"
)


@dataclass(frozen=True, kw_only=True)
class SavedTokenizer:
    """A saved tokenizer.

    Attributes:
        class_name: of the model that the config names.
        config: the content of its config.json.
        results: the content of its results.json; empty where there is none.
        parameters: number of values in the weights, codebook included; None where they are pickled.
    """

    folder: Path
    class_name: str
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
    def has_codes(self) -> bool:
        """Whether it gives codes as it is."""
        return self.is_fitted and self.quantizer["codebook_size"] is not None

    @property
    def code_groups(self) -> int:
        """G, how many codes a token has."""
        return self.quantizer["latent_dim"] if self.quantizer["kind"] == "token_bridge" else 1

    @property
    def bits(self) -> float:
        """That a token's codes tell."""
        return self.code_groups * math.log2(self.quantizer["codebook_size"] or 1)

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
    config = read_json(folder / CONFIG)
    name = _class_name(config)
    if name not in MODALITIES:
        raise ValueError(
            f"{folder} is no saved tokenizer: its {CONFIG} is of the class {name}; known: {', '.join(MODALITIES)}"
        )
    results = folder / RESULTS
    return SavedTokenizer(
        folder=folder,
        class_name=name,
        config=config,
        results=read_json(results) if results.exists() else {},
        modality=MODALITIES[name],
        parameters=_count_parameters(folder),
    )


def weights_set(name: str) -> str | None:
    """Which weights a file belongs to: "" for those without a variant, ".fp16" for those of the variant fp16.

    All shards and the index of a model have the same set, in either format and by either library. None: it holds no
    weights.
    """
    named = _WEIGHTS.fullmatch(name)
    return None if named is None else "".join(part or "" for part in named.groups())


def _class_name(config: dict[str, Any]) -> str | None:
    """As diffusers records it, or else as transformers does."""
    return config.get("_class_name") or next(iter(config.get("architectures") or []), None)


def _count_parameters(folder: Path) -> int | None:
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".bin")]
    sets = {file: weights_set(file.name) for file in files}
    if set(sets.values()) <= {None}:
        raise ValueError(f"{folder} has no weights (*model.safetensors); save the model with save_pretrained")
    counts: Counter[str] = Counter()
    for file, name in sets.items():
        # To open pickled ones would be to run them.
        if name is not None and file.suffix == ".safetensors":
            counts[name] += _count_values(file)
    # All of them are the same model.
    return next(iter(counts.values()), None)


def _count_values(file: Path) -> int:
    try:
        with safe_open(file, "numpy") as weights:
            return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or cut short ({error}); save the model again") from error
