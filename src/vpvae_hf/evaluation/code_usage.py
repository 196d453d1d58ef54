"""How evenly codes are used."""

import torch
from torch import Tensor


def code_usage(codes: Tensor, codebook_size: int) -> float:
    """CVU = exp(entropy of code use) / K: 1 where all codes are used equally often, 1/K where only one is.

    Args:
        codes: [...] int64 in 0..K-1, at least one.

    Raises:
        ValueError: no codes.
    """
    return usage_of_counts(torch.bincount(codes.flatten(), minlength=codebook_size))


def usage_of_counts(counts: Tensor) -> float:
    """CVU from how often each code was used, [K].

    Raises:
        ValueError: none was.
    """
    total = int(counts.sum())
    if total == 0:
        raise ValueError("code usage of no codes is not defined")
    return float(torch.special.entr(counts.double() / total).sum().exp() / len(counts))
