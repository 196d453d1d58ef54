"""A person's own picture or sound as a file of codes, and back; the commands and the page of `vpvae app` share it."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vpvae_hf.data import Packing, read_codes, write_codes
from vpvae_hf.metric_labels import metric_label
from vpvae_hf.models.tokenizer import Tokenizer
from vpvae_hf.settings import is_integer
from vpvae_hf.unreadable import UnreadableFileError

from . import MODALITIES
from .base import Modality


@dataclass(frozen=True)
class CodeFile:
    """Codes [*grid] or [*grid, G], and what decoding them needs.

    Attributes:
        kind: the name of the modality.
        size: size of the signal, see `Modality.read_file`.
        words: the same in words.
        tokenizer, revision, fingerprint: name, revision and fingerprint of the tokenizer that made the codes.
    """

    codes: Tensor
    kind: str
    codebook_size: int
    size: dict[str, int]
    words: str
    tokenizer: str
    revision: str | None
    fingerprint: dict[str, str]
    refine_steps: int


def read_code_file(file: str | os.PathLike) -> CodeFile:
    """Read what `write_code_file` wrote.

    Errors are those of `read_codes`, and UnreadableFileError if the header lacks something.
    """
    codes, header = read_codes(file)
    try:
        kind, codebook_size = header["kind"], int(header["codebook_size"])
        size, fingerprint = (dict(json.loads(header[name])) for name in ("size", "fingerprint"))
        words, _ = MODALITIES[kind].described(size, 1)
        if not all(is_integer(side) and side >= 1 for side in size.values()):
            raise ValueError(f"size {size}")
        made_with = header["tokenizer"], header["revision"] or None
        steps = int(header.get("refine_steps", "0"))
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UnreadableFileError(f"{file}: its header lacks what decoding needs, or is damaged ({error!r})") from error
    return CodeFile(codes, kind, codebook_size, size, words, *made_with, fingerprint, steps)


def write_code_file(
    path: str | os.PathLike,
    codes: Tensor,
    model: Tokenizer,
    size: Mapping[str, int],
    *,
    kind: str,
    name: str,
    revision: str | None = None,
    refine_steps: int = 0,
    packing: Packing | None = None,
) -> int:
    """Write codes [*grid] or [*grid, G] of the model's selected codebook; returns their bytes, without the header.

    Args:
        size: size of the signal, see `Modality.read_file`.
        kind: the name of the modality.
        name, revision: name and revision of the tokenizer.
        packing: see `write_codes`.
    """
    header = {
        "kind": kind,
        "tokenizer": name,
        "revision": revision or "",
        "fingerprint": json.dumps(model.fingerprint()),
        "refine_steps": str(refine_steps),
        "size": json.dumps(dict(size)),
    }
    return write_codes(path, codes, header, codebook_size=model.quantize.codebook_size, packing=packing)


def decode_code_file(file: str | os.PathLike, found: CodeFile, model: Tokenizer, name: str) -> Tensor:
    """The signal [1, ...], without padding, of a file of codes; the model then has the file's codebook selected.

    Args:
        name: name of the model, for messages.

    Raises:
        ValueError: another tokenizer made the codes.
        UnreadableFileError: the codes cannot be this tokenizer's, although the header names it.
    """
    if found.codebook_size in model.codebook_sizes:
        model.select_codebook(found.codebook_size)
    try:
        model.check_fingerprint(found.fingerprint, f"{file} was written")
    except ValueError as error:
        raise ValueError(f"{name}: {error}; {file} was made with {found.tokenizer}") from None
    try:
        return MODALITIES[found.kind].cut(model.detokenize(found.codes[None].to(model_device(model))), found.size)
    except ValueError as error:
        raise UnreadableFileError(f"{file}: {error}") from error


def model_device(model: Tokenizer) -> torch.device:
    """Where the model is."""
    return next(model.parameters()).device


def code_bits(codes: Tensor, codebook_size: int) -> float:
    """The information in codes if all are equally likely, in bits."""
    return codes.numel() * math.log2(codebook_size)


@contextmanager
def counted_parts(
    modality: Modality, model: Tokenizer, size: Mapping[str, int], count: Callable[[], None], refine_steps: int = 0
) -> Iterator[int]:
    """A context in which `count` is called after each part of a large signal; it yields the number of calls to come.

    Each part is processed several times if codes are refined.
    """

    def counted(*_) -> None:  # if a hook returned something, that would replace the module's output
        count()

    hooks = [module.register_forward_hook(counted) for module in (model.encoder, model.decoder)]
    try:
        yield modality.parts(size, model) * (1 + (refine_steps + 2 if refine_steps else 0))
    finally:
        for hook in hooks:
            hook.remove()


def measured(modality: Modality, model: Tokenizer, decoded: Tensor, original: Tensor) -> dict[str, str]:
    """The modality's metrics that are defined for a signal: label and value in words.

    Raises:
        ImportError, ValueError: packages are missing, or the signal is too small.
    """
    metrics = {name: float(value) for name, value in modality.metric_fn(model)(decoded, original).items()}
    return {
        metric_label(name).label: metric_label(name).format(value)
        for name, value in metrics.items()
        if not math.isnan(value)
    }
