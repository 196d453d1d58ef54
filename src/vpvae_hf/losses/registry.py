"""Losses by the names under which a configuration weights them."""

import difflib
import math
from collections.abc import Callable, Mapping

from torch import Tensor

from .perceptual import load_lpips_network, lpips_loss
from .reconstruction import RECONSTRUCTION_LOSSES

LPIPS = "lpips"


def build_losses(weights: Mapping[str, float]) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The losses whose weight is positive, in the order of `weights`.

    LPIPS' network is loaded here, if "lpips" has a weight, so that what it lacks shows before training. It follows the
    device of its inputs.

    Args:
        weights: non-negative weight of each loss by its name: "l1", "l2", "lpips".

    Returns:
        Name -> function of (reconstruction, original), both of one shape; gives [], not weighted.

    Raises:
        ValueError: an unknown name, a weight that is negative or not finite, or no positive weight.
        ImportError, OSError: "lpips" has a weight, but not what it needs; see `load_lpips_network`.
    """
    _check_weights(weights)
    losses = {**RECONSTRUCTION_LOSSES, LPIPS: lpips_loss}
    weighted = {name: losses[name] for name, weight in weights.items() if weight > 0}
    if LPIPS in weighted:
        load_lpips_network()
    return weighted


def _check_weights(weights: Mapping[str, float]) -> None:
    valid = [*RECONSTRUCTION_LOSSES, LPIPS]
    for name, weight in weights.items():
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1, cutoff=0)[0]
            raise ValueError(f"no loss {name!r}: valid names are {', '.join(valid)}; the nearest is {near!r}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of loss {name!r} is {weight}: give a finite number of at least 0")
    if not any(weights.values()):
        raise ValueError(f"no loss has a positive weight in {dict(weights)}: weight at least one of {', '.join(valid)}")
