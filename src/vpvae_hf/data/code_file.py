"""One signal's codes in a safetensors file, with what decoding them needs in its header."""

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vpvae_hf.files import write_atomically

from .codes import code_dtype

_FORMAT, _FORMER_AUDIO_FORMAT = "vpvae_hf codes", "vpvae_hf audio codes"
_OTHER = "holds no codes; name a file that `vpvae encode` wrote"


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
        ValueError: it holds no codes, or is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; name a file that `vpvae encode` wrote")
    try:
        with safe_open(path, "pt") as opened:
            header = opened.metadata() or {}
            if header.get("format") == _FORMER_AUDIO_FORMAT:  # of version 0.1, [1, G, N]
                codes = opened.get_tensor("audio_codes").long()[0].mT
                size = {name: int(header[name]) for name in ("num_samples", "sampling_rate")}
                return codes.squeeze(-1), header | {"kind": "audio", "size": json.dumps(size)}
            if header.get("format") != _FORMAT:
                raise ValueError(f"{path} {_OTHER}")
            stored = opened.get_tensor("codes")
    except SafetensorError as error:
        raise ValueError(f"{path} {_OTHER}, or is damaged ({error})") from error
    if not header["packed"]:
        return stored.long(), header
    packed = json.loads(header["packed"])
    bits, shape = packed["bits"], packed["shape"]
    planes = np.unpackbits(stored.numpy(), count=bits * prod(shape)).reshape(-1, bits).astype(np.int64)
    return torch.from_numpy((planes << np.arange(bits)).sum(axis=1).reshape(shape)), header
