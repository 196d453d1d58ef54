"""Saved tokenizers by name, whatever they are for."""

import json
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download

from vpvae_hf import AutoencoderVP, VPCodecModel
from vpvae_hf.hub import hub_errors

Tokenizer = AutoencoderVP | VPCodecModel


def load_tokenizer(name: str, revision: str | None = None, device: torch.device | None = None) -> Tokenizer:
    """A tokenizer from a folder or a hub id, in eval mode, on a device; where None, on a GPU if there is one.

    Raises:
        ValueError: it is no tokenizer of this package, or not a whole one.
        FileNotFoundError, PermissionError, ConnectionError: it cannot be had.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    places = {} if revision is None else {"revision": revision}
    kind = VPCodecModel if _config(name, revision).get("model_type") == "vp_codec" else AutoencoderVP
    return kind.from_pretrained(name, **places).eval().to(device)


def loading_code(model: Tokenizer, name: str | Path) -> str:
    """What loads it in Python."""
    return f'{type(model).__name__}.from_pretrained("{name}")'


def _config(name: str, revision: str | None) -> dict:
    if Path(name).is_dir():
        file = Path(name, "config.json")
        if not file.is_file():
            raise ValueError(f"{name} is no saved tokenizer: it has no config.json")
    else:
        with hub_errors(name, doing="load", revision=revision):
            file = Path(hf_hub_download(name, "config.json", revision=revision))
    return json.loads(file.read_text(encoding="utf-8"))
