"""How well a transformer predicts codes: bits per token on data that it was not trained on.

Shapes as in `vocabulary`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from .batches import IGNORED
from .masked import code_logits
from .vocabulary import CodeVocabulary


@dataclass(frozen=True)
class CodeLikelihood:
    """Negative log-likelihood of codes.

    Attributes:
        bits: the bits that the transformer needs for all codes.
        tokens: number of tokens; a token may have several codes.
        unigram_bits: the bits that a model would need if it knew only how often each code occurs in these data.
    """

    bits: float
    tokens: int
    unigram_bits: float

    bits_per_token = property(lambda self: self.bits / self.tokens)
    unigram_bits_per_token = property(lambda self: self.unigram_bits / self.tokens)

    def summary(self, manifest: Mapping[str, Any]) -> dict[str, float]:
        """For a card: tokens, bits per token, and bits per second or pixel, which follow from the codes' manifest."""
        names = ("tokens", "bits_per_token", "unigram_bits_per_token")
        summary = {name: getattr(self, name) for name in names}
        if "hop_length" in manifest:
            summary["bits_per_second"] = self.bits_per_token * manifest["sampling_rate"] / manifest["hop_length"]
        elif "downsample_factor" in manifest:
            summary["bits_per_pixel"] = self.bits_per_token / manifest["downsample_factor"] ** 2
        return summary

    def describe(self, manifest: Mapping[str, Any], *, bound: bool = False) -> str:
        """The summary in a line; `bound` if the bits are an upper bound."""
        line = (
            f"{'at most ' if bound else ''}{self.bits_per_token:.3f} bits per token on {self.tokens} held-out tokens, "
            f"{self.unigram_bits_per_token:.3f} by the codes' frequencies alone"
        )
        *_, (unit, per_unit) = self.summary(manifest).items()
        return line if unit == "unigram_bits_per_token" else f"{line}; {per_unit:.4g} {unit.replace('_', ' ')}"


@torch.no_grad()
def causal_likelihood(
    model: PreTrainedModel, batches: Iterable[dict[str, Tensor]], vocabulary: CodeVocabulary
) -> CodeLikelihood:
    """The likelihood of `CausalBatches` by a causal language model, with probabilities among codes alone.

    The pipeline draws codes with the same probabilities.
    """
    device, nats, counts = model.device, 0.0, _Counts(vocabulary)
    was_training = model.training
    model.eval()
    for batch in batches:
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1, vocabulary.first_code : vocabulary.begin]
        codes = torch.where(vocabulary.is_code(labels), labels - vocabulary.first_code, IGNORED)
        each = functional.cross_entropy(logits.flatten(0, 1).float(), codes.flatten(), reduction="none")
        nats += float(each.double().sum())
        counts.add(codes[codes != IGNORED])
    model.train(was_training)
    return counts.likelihood(nats)


@torch.no_grad()
def masked_likelihood(
    model: PreTrainedModel,
    batches: Iterable[dict[str, Tensor]],
    vocabulary: CodeVocabulary,
    *,
    draws: int = 4,
    seed: int = 0,
) -> CodeLikelihood:
    """An upper bound of the bits that a masked language model needs for `CausalBatches`.

    For a sequence of L codes a number l is drawn uniformly from 1..L, and l codes are masked. The bound is the mean of
    L / l times their negative log-likelihood (the any-order autoregressive bound, e.g. arXiv 2110.02037).

    Args:
        draws: number of draws per sequence.
        seed: decides the draws.
    """
    device, nats, counts = model.device, 0.0, _Counts(vocabulary)
    random = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    for batch in batches:
        for row, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            ids = labels[vocabulary.is_code(labels)]
            codes, length = ids - vocabulary.first_code, len(ids)
            counts.add(codes)
            before = vocabulary.condition_length
            condition = row[:before] if vocabulary.condition_size else vocabulary.condition_ids()[0]
            masked = torch.zeros(draws, length, dtype=torch.bool)
            numbers = torch.randint(1, length + 1, (draws,), generator=random)
            for number, mask in zip(numbers.tolist(), masked, strict=True):
                mask[torch.randperm(length, generator=random)[:number]] = True
            noisy = torch.where(masked, vocabulary.mask, ids).to(device)
            logits = code_logits(model, vocabulary, noisy, condition.expand(draws, -1).to(device)).double()
            target = codes.expand(draws, -1).to(device)
            each = functional.cross_entropy(logits.transpose(1, 2), target, reduction="none").cpu()
            nats += float(((each * masked).sum(dim=1) * length / numbers).mean())
    model.train(was_training)
    return counts.likelihood(nats)


class _Counts:
    """How often each code occurs, counted separately for each group."""

    def __init__(self, vocabulary: CodeVocabulary):
        self._groups = vocabulary.code_groups
        self._counts = torch.zeros(self._groups, vocabulary.codebook_size, dtype=torch.float64)

    def add(self, codes: Tensor) -> None:
        for group, counts in enumerate(self._counts):
            counts += torch.bincount(codes[group :: self._groups].cpu(), minlength=len(counts))

    def likelihood(self, nats: float) -> CodeLikelihood:
        tokens = int(self._counts[0].sum())
        if tokens == 0:
            raise ValueError("no codes to measure on")
        shares = self._counts / tokens
        unigram = -tokens * float(torch.special.xlogy(shares, shares).sum())
        return CodeLikelihood(bits=nats / math.log(2), tokens=tokens, unigram_bits=unigram / math.log(2))
