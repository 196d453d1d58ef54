"""How evenly codes are used, and sums from which means are computed."""

import torch
from torch import Tensor

from vpvae_hf.tensors import as_codes


def code_usage(codes: Tensor, codebook_size: int) -> float:
    """CVU = exp(entropy of code use) / K: 1 if all codes are used equally often, 1/K if only one is used.

    Args:
        codes: [...] integers in 0..K-1, at least one, or a ValueError is raised.
    """
    return code_statistics(code_counts(codes, codebook_size))["code_usage"]


def code_counts(codes: Tensor, codebook_size: int) -> Tensor:
    """[K] how often each code occurs; a ValueError for codes outside 0..K-1."""
    codes = as_codes(codes).flatten()
    outside = codes[(codes < 0) | (codes >= codebook_size)]
    if len(outside):
        raise ValueError(f"codes must lie in 0..{codebook_size - 1}, got {int(outside[0])}")
    return torch.bincount(codes, minlength=codebook_size)


def code_statistics(counts: Tensor) -> dict[str, float]:
    """ "code_usage" (CVU, perplexity / K), "perplexity" (exp of the entropy, 1 to K) and "codes_used" (the share of the
    codes that occur), from how often each occurs, [K]; a ValueError if none does.
    """
    total = int(counts.sum())
    if total == 0:
        raise ValueError("code usage of no codes is not defined")
    perplexity = float(torch.special.entr(counts.double() / total).sum().exp())
    return {
        "code_usage": perplexity / len(counts),
        "perplexity": perplexity,
        "codes_used": int((counts > 0).sum()) / len(counts),
    }


def sum_of_defined(values: Tensor) -> Tensor:
    """[3] float64 on the values' device: the sum of the values that are not NaN, the number of these, and of all."""
    missing = values.isnan()
    total = values.double().masked_fill(missing, 0).flatten().sum()
    count = torch.full((), values.numel(), device=values.device, dtype=torch.float64)
    return torch.stack([total, count - missing.sum(), count])
