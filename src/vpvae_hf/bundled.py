"""Tokenizers that come with the package."""

import os
from importlib.resources import files
from pathlib import Path

from .settings import did_you_mean


def bundled_tokenizers() -> list[str]:
    """The names of the tokenizers that come with the package."""
    return sorted(path.name for path in _folder().iterdir() if (path / "config.json").is_file())


def bundled_tokenizer(name: str) -> Path:
    """The folder of a tokenizer that comes with the package, for `from_pretrained`; no network is needed.

    Its README.md is the model card: what it was trained on, how well it reconstructs, and what it cannot do.

    Args:
        name: "image", an `AutoencoderVP` of factor 8, or "speech", a `VPCodecModel` at 16 kHz. Both have codebooks of
            several sizes.

    Raises:
        ValueError: there is no tokenizer of that name.
    """
    names = bundled_tokenizers()
    if name not in names:
        raise ValueError(f"no tokenizer {name!r} comes with the package; {did_you_mean(str(name), names)}")
    return _folder() / name


def bundled_or_given(name: str | os.PathLike) -> str | os.PathLike:
    """The folder of the bundled tokenizer of that name, unless a local path has the name; otherwise the name itself."""
    return bundled_tokenizer(name) if name in bundled_tokenizers() and not Path(name).exists() else name


def _folder() -> Path:
    return Path(str(files("vpvae_hf.model_cards")))
