"""One signal's codes in a safetensors file, with what decoding them needs in its header."""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vpvae_hf.files import write_atomically
from vpvae_hf.unreadable import UnreadableFileError

from .codes import code_dtype
from .entropy_coding import entropy_coded, entropy_decoded, range_coder

# How codes are stored in fewer bytes than integers take.
Packing = Literal["bits", "entropy"]

_FORMAT, _FORMER_AUDIO_FORMAT = "vpvae_hf codes", "vpvae_hf audio codes"


def write_codes(
    path: str | os.PathLike,
    codes: Tensor,
    header: Mapping[str, str],
    *,
    codebook_size: int,
    packing: Packing | None = None,
) -> int:
    """Write a file of codes atomically.

    Args:
        codes: [*grid] or [*grid, G] integers in 0..K-1.
        header: further entries of the header; "format", "codebook_size" and "packed" are added.
        codebook_size: K. Codes have the smallest type that holds it.
        packing: "bits": store ceil(log2 K) bits per code instead. "entropy": store fewer bits for codes that are
            frequent in this file, if that takes fewer bytes than "bits".

    Returns:
        The bytes that the codes take in the file, without the header.

    Raises:
        ImportError: packing is "entropy", and constriction is missing.
    """
    numbers = codes.cpu().numpy()
    described = {**header, "format": _FORMAT, "codebook_size": str(codebook_size), "packed": ""}
    if packing is None:
        stored = numbers.astype(code_dtype(codebook_size))
    else:
        stored, packed = _in_bits(numbers, codebook_size)
        coded = entropy_coded(numbers.ravel(), codebook_size) if packing == "entropy" else None
        if coded is not None and len(coded) < len(stored):
            stored, packed = coded, {"packing": "entropy", "crc32": _checksum(numbers)}
        described["packed"] = json.dumps({**packed, "shape": numbers.shape})
    with write_atomically(path) as aside:
        save_file({"codes": torch.from_numpy(stored)}, aside, metadata=described)
    return stored.nbytes


def read_codes(path: str | os.PathLike) -> tuple[Tensor, dict[str, str]]:
    """Codes [*grid] or [*grid, G] int64, and the header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no codes.
        UnreadableFileError: it is damaged (it is a ValueError, too).
        ImportError: its codes are entropy-coded, and constriction is missing.
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
        if not header["packed"]:
            return stored.long(), header
        return torch.from_numpy(_unpacked(stored.numpy(), header)), header


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
    if '"entropy"' in header.get("packed", ""):
        range_coder()  # if it is missing, this raises an error before anything is decoded
    return header if header.get("format") in (_FORMAT, _FORMER_AUDIO_FORMAT) else None


def _in_bits(codes: np.ndarray, codebook_size: int) -> tuple[np.ndarray, dict[str, int]]:
    bits = (codebook_size - 1).bit_length()
    return np.packbits((codes.reshape(-1, 1) >> np.arange(bits) & 1).astype(np.uint8)), {"bits": bits}


def _checksum(codes: np.ndarray) -> int:
    return zlib.crc32(codes.astype("<u4").tobytes())


def _unpacked(stored: np.ndarray, header: Mapping[str, str]) -> np.ndarray:
    packed: dict[str, Any] = json.loads(header["packed"])
    shape = packed["shape"]
    if packed.get("packing") == "entropy":
        codes = entropy_decoded(stored, prod(shape), int(header["codebook_size"]))
        if _checksum(codes) != packed["crc32"]:
            raise ValueError(f"{len(stored)} bytes that are not those of the {prod(shape)} codes")
        return codes.reshape(shape)
    bits = packed["bits"]
    if len(stored) != -(-bits * prod(shape) // 8):
        raise ValueError(f"{len(stored)} bytes for {prod(shape)} codes of {bits} bits")
    planes = np.unpackbits(stored, count=bits * prod(shape)).reshape(-1, bits).astype(np.int64)
    return (planes << np.arange(bits)).sum(axis=1).reshape(shape)


@contextmanager
def _damage_told(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UnreadableFileError(f"{path}: it is damaged, or no file of codes ({error!r}); encode anew") from error
