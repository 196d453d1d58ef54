"""Kinds of signals. To add one, write a subclass of `Modality` in its own file, and a line in `MODALITIES`."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download

from vpvae_hf.bundled import bundled_or_given
from vpvae_hf.files import hint_at_local_path, local_path, read_json
from vpvae_hf.hub import hub_entry, hub_errors
from vpvae_hf.lazy import import_quickly
from vpvae_hf.models.tokenizer import Tokenizer
from vpvae_hf.quantizers import CodebookNotFittedError, NoCodesError

from .base import Modality
from .batches import Batches
from .config import TrainingConfig
from .execution import Execution

__all__ = ["MODALITIES", "Batches", "Execution", "Modality", "load_for_tokenizing", "load_tokenizer", "modality_of"]


class _Modalities(dict[str, Modality]):
    """Modalities by name. One that is given as "module:class" is imported when it is first used."""

    def __getitem__(self, name: str) -> Modality:
        value = super().__getitem__(name)
        if isinstance(value, str):
            module, _, of_module = value.partition(":")
            value = self[name] = getattr(import_quickly(module, __name__), of_module)()
        return value

    def values(self) -> list[Modality]:
        return [self[name] for name in self]


# Pictures need no transformers, and sounds no diffusers, whose imports take seconds.
MODALITIES = _Modalities(image=".image:ImageModality", audio=".audio:AudioModality")


def modality_of(subject: Tokenizer | TrainingConfig) -> Modality:
    """The modality of a tokenizer, or of the settings of a training run."""
    named = subject.hub_entry.name if isinstance(subject, Tokenizer) else None
    for modality in [MODALITIES[named]] if named in MODALITIES else MODALITIES.values():
        if isinstance(subject, modality.model_class | modality.config_class):
            return modality
    known = ", ".join(f"{each.model_class.__name__} and {each.config_class.__name__}" for each in MODALITIES.values())
    raise ValueError(f"{type(subject).__name__} belongs to no modality; known: {known}")


def load_tokenizer(
    name: str | os.PathLike,
    revision: str | None = None,
    device: torch.device | None = None,
    codebook_size: int | None = None,
) -> Tokenizer:
    """A tokenizer of any modality from a folder or a hub id, in eval mode.

    Args:
        name: a local path, the name of a bundled tokenizer, or a hub id; it is looked up in this order.
        revision: branch, tag or commit of the hub id.
        device: where to load it; None for a GPU if there is one, otherwise the CPU.
        codebook_size: K of the codebook to select, if the tokenizer has several.

    Raises:
        ValueError: the folder or repository holds no tokenizer of this package, or an incomplete one.
        FileNotFoundError, PermissionError, ConnectionError: it cannot be loaded.
    """
    name = bundled_or_given(name)
    folder = local_path(name, suffixes=(".json", ".safetensors"))
    if folder is None:
        with hint_at_local_path(name), hub_errors(name, doing="load", revision=revision):
            file = Path(hf_hub_download(name, "config.json", revision=revision))
    elif not (file := folder / "config.json").is_file():
        hint = f"; name its folder, {folder.parent}" if folder.is_file() else ""
        raise ValueError(f"{name} is no saved tokenizer: it has no config.json{hint}")
    name = name if folder is None else str(folder)
    config = read_json(file)
    # As diffusers records the class, or as transformers does.
    recorded = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    entry = hub_entry(recorded)
    model_class = MODALITIES[entry.name].model_class if entry is not None and entry.name in MODALITIES else None
    if model_class is None or model_class.__name__ != recorded:
        known = ", ".join(modality.model_class.__name__ for modality in MODALITIES.values())
        raise ValueError(f"{name} is no saved tokenizer: its config.json is of the class {recorded}; known: {known}")
    given = {"revision": revision, "codebook_size": codebook_size}
    given = {key: value for key, value in given.items() if value is not None}
    device = device or Execution().find_device()
    with _without_bar():
        return model_class.from_pretrained(name, **given).eval().to(device)


@contextlib.contextmanager
def _without_bar() -> Iterator[None]:
    """A context without transformers' progress bar, which is of no use if weights are read in a second."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_for_tokenizing(
    name: str | os.PathLike, revision: str | None, execution: Execution, codebook_size: int | None = None
) -> Tokenizer:
    """A tokenizer that has codes, to be run as `execution` says.

    Errors of `load_tokenizer` and `Execution.find_device` are raised, too.

    Raises:
        CodebookNotFittedError, NoCodesError: the tokenizer has no codes.
    """
    model = execution.prepare(load_tokenizer(name, revision, execution.find_device(), codebook_size))
    if not model.quantize.config.fitted:
        raise CodebookNotFittedError(f"{name} has no fitted codebook; run `vpvae fit {name} --dataset NAME` first")
    if not model.quantize.has_codes:
        why = f"is continuous (kind {model.quantize.config.kind!r}) and has no codes"
        raise NoCodesError(f"{name} {why}; name another tokenizer")
    return model
