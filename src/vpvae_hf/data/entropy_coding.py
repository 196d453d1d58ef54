"""Codes as bytes in which frequent codes take fewer bits than rare ones: range coding by the codes' own frequencies.

Reader and writer count the same codes, so no table of frequencies is stored. If n of the m codes before were this one,
its probability is (n + 1/5) / (m + K/5), with K codes in the codebook.

Shapes: N codes, K codes in the codebook, M bytes.
"""

from collections.abc import Iterator
from types import ModuleType

import numpy as np

from vpvae_hf.settings import installed_with

# Each code's count begins at one over this number, which suits short files and long ones.
_FIRST_COUNT_DIVISOR = 5
# The frequencies are updated after each block. A block has 64 codes, or 1/16 of the codes before it if that is more.
_SHORTEST_BLOCK, _BLOCK_DIVISOR = 64, 16
# The coder's probabilities are multiples of 2^-24, and each code's is at least that.
_LARGEST_CODEBOOK = 2**22


def range_coder() -> ModuleType:
    """constriction's module `stream`; if it is missing, an ImportError says how to install it."""
    with installed_with("'vpvae_hf[entropy]'"):
        from constriction import stream
    return stream


def entropy_coded(codes: np.ndarray, codebook_size: int) -> np.ndarray | None:
    """Bytes [M] uint8 of codes [N] in 0..K-1; None if K exceeds 4,194,304, which is too large for the coder.

    Raises:
        ImportError: constriction is missing.
    """
    coder = range_coder()
    if codebook_size > _LARGEST_CODEBOOK:
        return None
    encoder, counts = coder.queue.RangeEncoder(), np.zeros(codebook_size, np.int64)
    for start, end in _blocks(len(codes)):
        block = codes[start:end].astype(np.int32)
        encoder.encode(block, _model(coder, counts, start))
        counts += np.bincount(block, minlength=codebook_size)
    return encoder.get_compressed().astype("<u4").view(np.uint8)


def entropy_decoded(stored: np.ndarray, count: int, codebook_size: int) -> np.ndarray:
    """The codes [N] int64 from which `entropy_coded` made these bytes [M]; most damaged bytes give other codes.

    Raises:
        ImportError: constriction is missing.
        ValueError: no encoder writes such bytes, or the codes do not fit into memory.
    """
    coder = range_coder()
    if not 2 <= codebook_size <= _LARGEST_CODEBOOK:
        raise ValueError(f"entropy coding of {codebook_size} codes")
    decoder, counts = coder.queue.RangeDecoder(stored.view("<u4").astype(np.uint32)), np.zeros(codebook_size, np.int64)
    try:
        codes = np.empty(count, np.int64)
        for start, end in _blocks(count):
            codes[start:end] = decoder.decode(_model(coder, counts, start), end - start)
            counts += np.bincount(codes[start:end], minlength=codebook_size)
    except (AssertionError, MemoryError) as error:  # the former from the coder, for bytes that no encoder writes
        raise ValueError(f"{len(stored)} bytes for {count} codes ({error})") from error
    return codes


def _model(coder: ModuleType, counts: np.ndarray, total: int):
    # Computed from integers, so that every machine rounds alike.
    probabilities = (_FIRST_COUNT_DIVISOR * counts + 1) / (_FIRST_COUNT_DIVISOR * total + len(counts))
    return coder.model.Categorical(probabilities.astype(np.float32), perfect=False)


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    start = 0
    while start < count:
        end = min(count, start + max(_SHORTEST_BLOCK, start // _BLOCK_DIVISOR))
        yield start, end
        start = end
