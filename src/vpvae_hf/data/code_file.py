"""One signal's codes in a safetensors file, with what decoding them needs in its header."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vpvae_hf.files import write_atomically
from vpvae_hf.unreadable import UnreadableFileError

from .codes import code_dtype

_FORMAT, _FORMER_AUDIO_FORMAT = "vpvae_hf codes", "vpvae_hf audio codes"


def write_codes(
    path: str | os.PathLike, codes: Tensor, header: Mapping[str, str], *, codebook_size: int, pack: bool = False
) -> int:
    """Write a file of codes atomically.

    Args:
        codes: [*grid] or [*grid, G] integers in 0..K-1.
        header: what else to keep with them; "format", "codebook_size" and "packed" are added.
        codebook_size: K. Codes have the smallest type that holds it.
        pack: store ceil(log2 K) bits for each code instead.

    Returns:
        The bytes that the codes take in the file, without the header.
    """
    numbers = codes.cpu().numpy()
    described = {**header, "format": _FORMAT, "codebook_size": str(codebook_size), "packed": ""}
    if pack:
        bits = (codebook_size - 1).bit_length()
        planes = numbers.reshape(-1, 1) >> np.arange(bits) & 1
        stored = np.packbits(planes.astype(np.uint8))
        described["packed"] = json.dumps({"bits": bits, "shape": numbers.shape})
    else:
        stored = numbers.astype(code_dtype(codebook_size))
    with write_atomically(path) as aside:
        save_file({"codes": torch.from_numpy(stored)}, aside, metadata=described)
    return stored.nbytes


def read_codes(path: str | os.PathLike) -> tuple[Tensor, dict[str, str]]:
    """Codes [*grid] or [*grid, G] int64, and the header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no codes.
        UnreadableFileError: it is damaged (it is a ValueError, too).
    """
    header = read_header(path)
    if header is None:
        raise ValueError(f"{path} holds no codes; name a file that `vpvae encode` wrote")
    with _damage_told(path), safe_open(path, "pt") as opened:
        if header["format"] == _FORMER_AUDIO_FORMAT:  # [1, G, N]
            return opened.get_tensor("audio_codes").long()[0].mT.squeeze(-1), header
        stored = opened.get_tensor("codes")
        if stored.is_floating_point():
            raise TypeError(f"codes of type {stored.dtype}")
        return _unpacked(stored, json.loads(header["packed"])) if header["packed"] else stored.long(), header


def read_header(path: str | os.PathLike) -> dict[str, str] | None:
    """The header of a file of codes, None for another safetensors file; errors are those of `read_codes`."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; name a file that `vpvae encode` wrote")
    with _damage_told(path):
        with safe_open(path, "pt") as opened:
            header = opened.metadata() or {}
        if header.get("format") == _FORMER_AUDIO_FORMAT:  # of version 0.1
            size = {name: int(header[name]) for name in ("num_samples", "sampling_rate")}
            header |= {"kind": "audio", "size": json.dumps(size)}
        return header if header.get("format") in (_FORMAT, _FORMER_AUDIO_FORMAT) else None


def _unpacked(stored: Tensor, packed: Mapping[str, Any]) -> Tensor:
    bits, shape = packed["bits"], packed["shape"]
    if len(stored) != -(-bits * prod(shape) // 8):
        raise ValueError(f"{len(stored)} bytes for {prod(shape)} codes of {bits} bits")
    planes = np.unpackbits(stored.numpy(), count=bits * prod(shape)).reshape(-1, bits).astype(np.int64)
    return torch.from_numpy((planes << np.arange(bits)).sum(axis=1).reshape(shape))


@contextmanager
def _damage_told(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UnreadableFileError(f"{path}: it is damaged, or no file of codes ({error!r}); encode anew") from error
