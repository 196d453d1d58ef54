"""How large a perturbation is: a fixed number, or as large as the quantization error it stands for."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from vpvae_hf import distributed
from vpvae_hf.tensors import kept_for_training, precise_dtype

Displacement: TypeAlias = Callable[[float], float]

# The factor is searched for again once this share of the queue has been replaced.
_FOUND_EVERY = 0.5
# Factors that are tried in turn until the displacement is large enough. With still larger ones most proposals are
# rejected.
_LADDER = tuple(0.25 * 2 ** (i / 2) for i in range(10))
# Between two searches the factor stays within this ratio of the one that was found.
_LEEWAY = 1.5
# How much of the ratio of error to displacement one step corrects: a batch shows the displacement within a few percent,
# so its noise must average out over several steps.
_GAIN = 0.2


class PerturbationScale:
    """The factor of a perturbation, eta or the share; "auto" makes the displacement as large as the error.

    "auto" keeps the root mean square displacement (a rejected proposal counts as zero) equal to the root mean square
    error of the live codebook, by correcting the factor after each step. If the displacement is not proportional to the
    factor, the factor is searched for at the beginning. It is searched for again when it has left the range around the
    factor that was found and half of the queue is new.

    In a distributed job every rank must call `find`, and `observe` with the displacement of all tokens; then all have
    the same values: the first rank searches for all. The ranks fill the queue together, so a search is due if the
    number of new latents is half of the queue times the number of ranks, or if the queue has doubled.

    Args:
        setting: a positive number, or "auto".
        start: the factor used with "auto" until the first search.
        bounds: least and greatest factor, if the displacement is proportional to it; None if a search must find them.

    Attributes:
        value: the factor, [] float64 (float32 on a device without float64), on the device that `move` names. It is
            updated there without the CPU waiting for it.
    """

    def __init__(self, setting: float | Literal["auto"], start: float, bounds: tuple[float, float] | None = None):
        self.automatic = setting == "auto"
        self.value = _number(start if self.automatic else float(setting))
        self._found_at = 0
        self._proportional = bounds is not None
        self._bounds = bounds

    def due(self, pushed: int, size: int) -> bool:
        """Whether to search for the factor now that `pushed` latents have entered the queue and it holds `size`."""
        if self._proportional or not self.automatic:
            return False
        new, enough = pushed - self._found_at, _FOUND_EVERY * size * distributed.world_size()
        return self._bounds is None or new >= enough or size >= 2 * self._found_at

    @kept_for_training()
    def move(self, device: torch.device) -> None:
        """Keep the value on a device from now on."""
        self.value = self.value.to(device, precise_dtype(device))

    @kept_for_training()
    def find(self, error_ms: Tensor, pushed: int, displacement_ms: Displacement) -> None:
        """Search for the factor whose displacement equals the mean square error [].

        Args:
            displacement_ms: gives the mean square displacement that a factor causes.
        """
        found: list[float] = []
        # The other ranks wait: searching, too, would take them as long, and rounding may differ between devices.
        with distributed.failing_together():
            if distributed.rank() == 0:
                self._find(float(error_ms), displacement_ms)
                found = [float(self.value), *self._bounds]
        value, *bounds = distributed.from_first_rank(torch.tensor(found, device="cpu", dtype=torch.float64)).tolist()
        self.value = torch.full_like(self.value, value)
        self._bounds = tuple(bounds)
        self._found_at = pushed

    @kept_for_training()
    def observe(self, displacement_ms: Tensor, error_ms: Tensor) -> None:
        """Record the mean square displacement [] that the present factor caused, and the error [] that it should have.

        Both lie on the value's device.
        """
        if not self.automatic or self._bounds is None:
            return
        followed = (self.value * (error_ms / displacement_ms) ** (_GAIN / 2)).clamp(*self._bounds)
        # Without a displacement, or an error, there is nothing to correct; NaN counts as neither, since it is not above
        # zero.
        self.value = torch.where((displacement_ms > 0) & (error_ms > 0), followed, self.value)

    def forget(self) -> None:
        """Search for the factor again at the next opportunity, since the codebook size has changed."""
        if not self._proportional:
            self._bounds = None

    def _find(self, error_ms: float, displacement_ms: Displacement) -> None:
        value = float(self.value)
        if self._bounds is not None and self._bounds[0] < value < self._bounds[1]:
            self._bounds = (value / _LEEWAY, min(value * _LEEWAY, _LADDER[-1]))
            return
        # Climb the ladder to the first factor whose displacement is large enough. A larger radius moves accepted
        # latents farther but has more proposals rejected, so the displacement has a greatest value; if that is below
        # the error, its factor is the best one.
        tried: list[tuple[float, float]] = []
        for factor in _LADDER:
            tried.append((displacement_ms(factor), factor))
            if tried[-1][0] >= error_ms:
                break
        reached, best = max(tried, key=lambda pair: pair[0])
        if reached > error_ms and len(tried) > 1:
            (low_ms, low), (high_ms, high) = tried[-2:]
            part = (error_ms**0.5 - low_ms**0.5) / (high_ms**0.5 - low_ms**0.5)
            best = low + part * (high - low)
        self.value = torch.full_like(self.value, best)
        self._bounds = (best / _LEEWAY, best if reached < error_ms else best * _LEEWAY)

    def state_dict(self) -> dict:
        return {"value": float(self.value), "found_at": self._found_at, "bounds": self._bounds}

    def load_state_dict(self, state: dict) -> None:
        self._found_at = state["found_at"]
        if self.automatic:
            self.value, self._bounds = _number(state["value"]), state["bounds"]


def _number(value: float) -> Tensor:
    return torch.tensor(value, device="cpu", dtype=torch.float64)
