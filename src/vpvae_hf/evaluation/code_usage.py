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
    if codes.numel() == 0:
        raise ValueError("code usage of no codes is not defined")
    frequencies = torch.bincount(codes.flatten(), minlength=codebook_size).double() / codes.numel()
    return float(torch.special.entr(frequencies).sum().exp() / codebook_size)
