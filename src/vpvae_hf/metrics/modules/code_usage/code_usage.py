"""Code usage as a metric module for evaluate."""

import evaluate
import torch
from torch import Tensor

from vpvae_hf.metrics.codes import code_statistics
from vpvae_hf.metrics.evaluate_modules import Argument, RunningTotals

_CODES = {
    "predictions": Argument("int64", 1, "codes of any shape [...], integers in 0..K-1."),
    "codebook_size": Argument("int64", 0, "K; the same for all batches."),
}


class CodeUsage(RunningTotals, evaluate.Metric):
    """How evenly the codes of a tokenizer are used, from how often each occurs in all that is added.

    Gives "code_usage" (CVU, exp of the entropy in nats of code use / K: 1 where all codes are used equally often, 1/K
    where only one is), "perplexity" (exp of the entropy, 1 to K), "codes_used" (the share of the K codes that occur)
    and "tokens" (how many codes were added). Few tokens for each code make all three lower than many would.
    """

    arguments = _CODES
    citation_text = "VP-VAE, arXiv 2602.17133"

    def totals_of(self, predictions: Tensor, references: Tensor | None, codebook_size: int) -> Tensor:
        if references is not None:
            raise ValueError("code usage takes no references")
        if predictions.is_floating_point():
            raise ValueError(f"codes must be integers, got {predictions.dtype}")
        codes = predictions.flatten().long()
        outside = codes[(codes < 0) | (codes >= codebook_size)]
        if len(outside):
            raise ValueError(f"codes must lie in 0..{codebook_size - 1}, got {int(outside[0])}")
        return torch.bincount(codes, minlength=codebook_size).double().cpu()

    def summary(self, totals: Tensor) -> dict[str, float]:
        return code_statistics(totals) | {"tokens": int(totals.sum())}
