"""`tokenizer.json` beside files of codes: what made them, so that they are never mixed with those of another run."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vpvae_hf.models.fingerprint import sha256_of

MANIFEST = "tokenizer.json"
# Where the tokenizer lies may change, what it is may not; counts come when all files are there.
_MAY_DIFFER = frozenset(("tokenizer", "tokenizer_revision", "images", "unreadable_images", "clips", "unreadable_clips"))


def tokenizer_hash(model: nn.Module) -> str:
    """SHA-256 of a model's config, weights and codebook."""
    config = model.config
    if isinstance(config, Mapping):
        fields = {name: value for name, value in config.items() if not name.startswith("_")}
    else:
        # Not what transformers adds to every config, which changes from release to release.
        fields = {
            name: value for name, value in config.to_dict().items() if name in vars(type(config))["__annotations__"]
        }
    return sha256_of(fields, model.state_dict())


def claim_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Make a folder that of a run, or see that it is already. Ranks may do so at once.

    Args:
        settings: of the run, as JSON stores them.

    Raises:
        FileExistsError: it holds other files, or is one.
        ValueError: it is that of a run with other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MANIFEST).exists():
        # Another rank may be writing the manifest, aside.
        others = [file.name for file in folder.iterdir() if not file.name.startswith(f".{MANIFEST}")]
        if others and not (folder / MANIFEST).exists():
            raise FileExistsError(f"{folder} holds other files ({min(others)}) and no {MANIFEST}; name another folder")
        _write(folder, settings)
    held = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for name, value in settings.items():
        if name not in _MAY_DIFFER and held.get(name) != value:
            raise ValueError(
                f"{folder} holds codes of another run: its {name} is {held.get(name)!r}, here it is {value!r}; "
                "go on with the same settings, or name another folder"
            )


def write_totals(folder: Path, **counts: int) -> None:
    """Add the counts of a finished run: `images` and `unreadable_images`, or `clips` and `unreadable_clips`."""
    held = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    _write(folder, held | counts)


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    aside = folder / f".{MANIFEST}.{os.getpid()}"
    aside.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, folder / MANIFEST)
