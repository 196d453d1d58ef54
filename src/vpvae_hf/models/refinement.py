"""Refined codes: codes are changed so that the decoded signal comes closer to the original.

Nothing is trained. In a step some tokens move to another code against the gradient of the error. This trial is decoded,
and the moves that lowered the error around their token are kept.

Shapes: B items of a batch, b of them still refined, *grid the positions of an item's tokens, d latent dimensions, C
channels of a signal and *positions its pixels or samples.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from vpvae_hf.losses import ItemLoss
from vpvae_hf.quantizers import Quantizer

# A token's step is multiplied by these after a move that was kept, or undone; and the limits of a step.
_LONGER, _SHORTER, _SHORTEST_STEP, _LONGEST_STEP = 1.3, 0.8, 0.02, 4.0
# An item is finished after this many steps in a row in which all moves were undone.
_PATIENCE = 8
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """A batch whose codes are refined.

    Attributes:
        originals: [B, C, *positions] the signals.
        decode: (vectors [b, *grid, d], items [b] of the batch) -> [b, C, *positions] or more at the end, as
            `detokenize` decodes them, but with a gradient.
        token_size: how many positions along each axis a token stands for.
        lengths: how many positions of each item count, for signals with one axis; None for all.
    """

    originals: Tensor
    decode: Callable[[Tensor, Tensor], Tensor]
    token_size: int
    lengths: list[int] | None = None

    def errors(self, vectors: Tensor, items: Tensor, loss: ItemLoss) -> Tensor:
        """Each token's part [b, *grid] of an item's error, which is their sum; or [b] if the loss has no parts."""
        originals, grid = self.originals[items], vectors.shape[1:-1]
        decoded = self.decode(vectors, items).float()[..., : originals.shape[-1]]
        if self.lengths is None:
            return self._by_token(loss(decoded, originals), originals, grid)
        # One by one, so that padding has no part in them.
        errors = []
        for place, length in enumerate(self.lengths[item] for item in items.tolist()):
            original = originals[place : place + 1, ..., :length]
            errors.append(self._by_token(loss(decoded[place : place + 1, ..., :length], original), original, grid))
        return torch.cat(errors)

    def token_counts(self, grid: Sequence[int]) -> list[int]:
        """How many tokens of a grid are of each item."""
        if self.lengths is None:
            return [math.prod(grid)] * len(self.originals)
        return [-(-length // self.token_size) for length in self.lengths]

    def _by_token(self, errors: Tensor, originals: Tensor, grid: Sequence[int]) -> Tensor:
        errors, count, positions = errors.float(), len(originals), originals.shape[2:]
        if errors.shape == (count,):
            return errors
        if errors.shape != (count, *positions):
            raise ValueError(
                f"refine_loss must give the error of each item, [{count}], or of each of its positions, "
                f"{[count, *positions]}; it gives {list(errors.shape)}"
            )
        for axis, tokens in enumerate(grid, start=1):
            missing = tokens * self.token_size - errors.shape[axis]
            errors = pad(errors.movedim(axis, -1), (0, missing)).unflatten(-1, (tokens, -1)).sum(dim=-1)
            errors = errors.movedim(-1, axis)
        return errors / math.prod(positions)


def refined_codes(batch: Refinement, loss: ItemLoss, quantizer: Quantizer, latents: Tensor, steps: int) -> Tensor:
    """Codes [B, *grid] or [B, *grid, G] of latents [B, *grid, d]; no item has a larger error than with nearest codes.

    The codes of an item do not depend on the other items of the batch, rounding aside.

    Args:
        steps: how many gradients are computed, and trials made; signals are decoded twice more often.
    """
    # Autograd takes no tensors that were made within torch.inference_mode.
    with torch.inference_mode(False), torch.no_grad():
        batch = replace(batch, originals=batch.originals.float().clone())
        search = _Search(quantizer, latents.float().clone(), batch.token_counts(latents.shape[1:-1]))
        for _ in range(steps):
            with torch.enable_grad():
                vectors = search.trial_vectors.detach().requires_grad_()
                errors = batch.errors(vectors, search.items, loss)
                (gradient,) = torch.autograd.grad(errors.sum(), vectors)
            search.settle(errors.detach(), gradient)
            if not len(search.items):
                break
            search.move()
        if len(search.items):
            search.settle(batch.errors(search.trial_vectors, search.items, loss))
        # What is left of several trials has not been decoded yet.
        search.finish()
        search.judge(batch.errors(search.trial_vectors, search.items, loss))
        return search.best


_OF_STAYING = (
    "items",
    "_in_vain",
    "_counts",
    "_codes",
    "_vectors",
    "_length",
    "_step",
    "_errors",
    "_gradient",
    "_metric",
)


class _Search:
    """What is known of the items that are still refined.

    Attributes:
        items: [b] their places in the batch.
        trial_vectors: [b, *grid, d] what is decoded next.
        best: [B, *grid] or [B, *grid, G] the codes of the least error so far.
    """

    def __init__(self, quantizer: Quantizer, latents: Tensor, counts: list[int]):
        self._quantizer = quantizer
        self.items = torch.arange(len(latents), device=latents.device)
        self.trial_vectors, self._trial = self._vectors, self._codes = quantizer.nearest(latents)
        self.best, self._kept = self._codes.clone(), self._codes.clone()
        self._least = latents.new_full((len(latents),), math.inf)
        # A clip's tokens are its first; what lies beyond has a part in nothing.
        self._counts = torch.tensor(counts, device=latents.device)
        beyond = torch.arange(latents[0, ..., 0].numel(), device=latents.device) >= self._counts[:, None]
        errors = (self._vectors - latents).masked_fill(beyond.view(latents.shape[:-1])[..., None], 0)
        # Codes lie about as far apart as latents lie from them, so steps have that length, too.
        self._length = self._rms_length(errors)
        self._step = torch.ones_like(latents[..., 0])
        self._moved = torch.zeros_like(self._step, dtype=torch.bool)
        self._in_vain = torch.zeros_like(self.items)
        self._errors = self._gradient = self._metric = None
        self._moves = 0

    def judge(self, errors: Tensor) -> None:
        """Remember the trial of an item if its error is the least so far."""
        errors = errors.flatten(1).sum(dim=1) if errors.ndim > 1 else errors
        better = errors < self._least[self.items]
        self._least[self.items] = torch.where(better, errors, self._least[self.items])
        self.best[self.items] = torch.where(_like(better, self._trial), self._trial, self.best[self.items])

    def settle(self, errors: Tensor, gradient: Tensor | None = None) -> None:
        """Keep the moves of the trial that lowered the errors around their token; undo the others.

        The trial's errors and gradient are used as those of the kept moves, except where a move was undone. Items
        without a kept move for some steps are finished.

        Args:
            gradient: None if no other trial follows.
        """
        self.judge(errors)
        around = _around if errors.ndim > 1 else _everywhere
        errors = _like(errors, self._step).expand_as(self._step)
        gradient = self._gradient if gradient is None else gradient.nan_to_num(0.0, 0.0, 0.0)
        if self._errors is None:
            self._errors, self._gradient, self._metric = errors, gradient, _whitening(gradient)
            return
        change = errors - self._errors
        kept = self._moved & (around(change) < 0)
        undone = self._moved & ~kept
        near_kept, near_undone = around(kept.float()), around(undone.float())
        self._errors = self._errors + change * torch.where(near_undone > 0, near_kept / (near_kept + near_undone), 1.0)
        self._gradient = torch.where(undone[..., None], self._gradient, gradient)
        self._vectors = torch.where(kept[..., None], self.trial_vectors, self._vectors)
        self._codes = torch.where(_like(kept, self._codes), self._trial, self._codes)
        self._kept[self.items] = self._codes
        factor = torch.where(kept, _LONGER, torch.where(undone, _SHORTER, 1.0))
        self._step = (self._step * factor).clamp(_SHORTEST_STEP, _LONGEST_STEP)
        self._in_vain = torch.where(kept.flatten(1).any(dim=1), 0, self._in_vain + 1)
        staying = self._in_vain < _PATIENCE
        if not staying.all():
            for name in _OF_STAYING:
                setattr(self, name, getattr(self, name)[staying])

    def move(self) -> None:
        """Make the next trial from the kept codes: some tokens move against the gradient.

        Those move whose predicted reduction of the error is the greatest around, since neighbours that move together
        disturb each other.
        """
        direction = (self._gradient.flatten(1, -2) @ self._metric).view_as(self._gradient)
        length = self._length / self._rms_length(direction).clamp(min=_TINY)
        vectors, codes = self._quantizer.nearest(
            self._vectors - (_like(length, self._step) * self._step)[..., None] * direction
        )
        differs = codes != self._codes
        differs = differs if differs.ndim == self._step.ndim else differs.any(dim=-1)
        priority = self._predicted_reduction(vectors - self._vectors, length).clamp(min=_TINY)
        priority = priority * self._step.clamp(max=1).square()  # a token whose moves failed waits
        # Drawn for the grid, so alike in every batch; a longer grid begins with what a shorter one draws.
        generator = torch.Generator("cpu").manual_seed(self._moves)
        numbers = torch.rand(self._step.shape[1:], generator=generator, device="cpu", dtype=torch.float32)
        self._moves += 1
        priority = torch.where(differs, priority * (0.5 + numbers.to(priority.device)), 0)
        self._moved = differs & (priority == _greatest_around(priority))
        self._trial = torch.where(_like(self._moved, codes), codes, self._codes)
        self.trial_vectors = torch.where(self._moved[..., None], vectors, self._vectors)

    def _predicted_reduction(self, moves: Tensor, length: Tensor) -> Tensor:
        """By how much moves [b, *grid, d], each alone, should lower the error, [b, *grid].

        By the gradient g and the curvature H for which `length` times the direction is the best step, g'm + m'Hm.
        """
        curved = torch.linalg.solve(self._metric, moves.flatten(1, -2).mT).mT.view_as(moves)
        curvature = (moves * curved).sum(dim=-1) / (2 * _like(length, self._step)).clamp(min=_TINY)
        return -(self._gradient * moves).sum(dim=-1) - curvature

    def finish(self) -> None:
        """Make what was kept of all items the last trial."""
        self.items, self._trial = torch.arange(len(self.best), device=self.best.device), self._kept
        self.trial_vectors = self._quantizer.decode(self._kept)

    def _rms_length(self, vectors: Tensor) -> Tensor:
        """[b] root mean square length of vectors [b, *grid, d] of tokens; those that are of no item are 0."""
        return (vectors.square().flatten(1).sum(dim=1) / self._counts).sqrt()


def _whitening(gradients: Tensor) -> Tensor:
    """[b, d, d] what makes the gradients [b, *grid, d] of an item equally long in all directions.

    The decoder's sensitivity E[J^T J] to a latent differs between directions; the square root of E[g g^T] has its axes
    and, as far as errors are alike, its proportions, and costs nothing.
    """
    flat = gradients.flatten(1, -2)
    values, axes = torch.linalg.eigh(flat.mT @ flat / flat.shape[1])
    floor = (0.01 * values.mean(dim=1, keepdim=True)).clamp(min=_TINY)
    return axes * values.maximum(floor).rsqrt()[:, None] @ axes.mT


def _like(of_items: Tensor, other: Tensor) -> Tensor:
    """Values [b, ...] with as many dimensions as another tensor [b, ..., ...]."""
    return of_items.view(*of_items.shape, *[1] * (other.ndim - of_items.ndim))


def _everywhere(values: Tensor) -> Tensor:
    """The mean over an item's tokens, for each of them: [b, *grid]."""
    return _like(values.flatten(1).mean(dim=1), values).expand_as(values)


def _around(values: Tensor) -> Tensor:
    """The sum over each token and its neighbours, also those at corners, [b, *grid]."""
    for axis in range(1, values.ndim):
        padded = pad(values.movedim(axis, -1), (1, 1))
        values = values + (padded[..., :-2] + padded[..., 2:]).movedim(-1, axis)
    return values


def _greatest_around(values: Tensor) -> Tensor:
    """The greatest of each token's value and those of its neighbours, for values of 0 or more, [b, *grid]."""
    for axis in range(1, values.ndim):
        padded = pad(values.movedim(axis, -1), (1, 1))
        values = torch.maximum(values, torch.maximum(padded[..., :-2], padded[..., 2:]).movedim(-1, axis))
    return values


def recomputed(function: Callable[..., Tensor], vectors: Tensor, *others: Any) -> Tensor:
    """`function(vectors, *others)`, whose activations are not kept but computed again for the gradient."""
    if torch.is_grad_enabled() and vectors.requires_grad:
        return checkpoint(function, vectors, *others, use_reentrant=False)
    return function(vectors, *others)
