"""Losses that codes are refined by: the error of each position of a signal, or of each item, not their mean.

Shapes: B items, C channels, *positions the pixels or samples of a signal; W = B * C waveforms of T samples, with L
frames in a spectrogram.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from .registry import Loaded, Loss, build_losses
from .spectral import MINIMUM_LENGTH, multi_resolution_stft_by_position

# (reconstruction, original), both [B, C, *positions] float32 -> the error [B, *positions] at each position, whose mean
# is an item's error; or, if a loss has no positions, the error [B] of each item. An item's error depends on no other's.
ItemLoss = Callable[[Tensor, Tensor], Tensor]


def item_losses(weights: Mapping[str, float], available: Mapping[str, Loss | Loaded]) -> ItemLoss:
    """The weighted sum of losses, for each item; of those that have parts, at each position.

    Args and errors as of `build_losses`.
    """
    losses = [
        (weights[name], _BY_POSITION.get(name) or _by_item(loss))
        for name, loss in build_losses(weights, available).items()
    ]

    def total(reconstruction: Tensor, original: Tensor) -> Tensor:
        errors = [weight * loss(reconstruction, original) for weight, loss in losses]
        widest = max(errors, key=Tensor.dim)
        return sum(each if each.ndim == widest.ndim else _spread(each, widest) for each in errors)

    return total


def _spread(errors: Tensor, like: Tensor) -> Tensor:
    """An error [B], spread equally over all positions."""
    return errors.view(-1, *[1] * (like.ndim - 1)).expand_as(like)


def _by_item(loss: Loss) -> ItemLoss:
    def of_each(reconstruction: Tensor, original: Tensor) -> Tensor:
        return torch.stack([loss(*pair) for pair in zip(reconstruction.split(1), original.split(1), strict=True)])

    return of_each


def _l1(reconstruction: Tensor, original: Tensor) -> Tensor:
    return (reconstruction - original).abs().mean(dim=1)


def _l2(reconstruction: Tensor, original: Tensor) -> Tensor:
    return (reconstruction - original).square().mean(dim=1)


def _stft(reconstruction: Tensor, original: Tensor) -> Tensor:
    """The STFT loss by position; silence is appended to clips that are too short for a spectrogram."""
    length = original.shape[-1]
    missing = (0, max(0, MINIMUM_LENGTH - length))
    errors = multi_resolution_stft_by_position(pad(reconstruction, missing), pad(original, missing))
    return errors[..., :length] + errors[..., length:].sum(dim=-1, keepdim=True) / length


_BY_POSITION: dict[str, ItemLoss] = {"l1": _l1, "l2": _l2, "stft": _stft}
