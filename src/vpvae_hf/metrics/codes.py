"""How evenly codes are used."""

import torch
from torch import Tensor


def code_usage(codes: Tensor, codebook_size: int) -> float:
    """CVU = exp(entropy of code use) / K: 1 if all codes are used equally often, 1/K if only one is used.

    Args:
        codes: [...] int64 in 0..K-1, at least one.

    Raises:
        ValueError: no codes.
    """
    return code_statistics(torch.bincount(codes.flatten(), minlength=codebook_size))["code_usage"]


def code_statistics(counts: Tensor) -> dict[str, float]:
    """How evenly codes are used, from how often each one occurs, [K].

    Returns:
        "code_usage" (CVU, perplexity / K), "perplexity" (exp of the entropy, 1 to K) and "codes_used" (the share of
        the codes that occur).

    Raises:
        ValueError: no code occurs.
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
