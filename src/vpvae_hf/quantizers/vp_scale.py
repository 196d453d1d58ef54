"""How large a perturbation is: a fixed number, or as large as the quantization error it stands for."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from vpvae_hf import distributed
from vpvae_hf.codebook import TooFewDistinctError, fit_kmeans
from vpvae_hf.neighbors import nearest_point
from vpvae_hf.tensors import kept_for_training, precise_dtype

Displacement: TypeAlias = Callable[[float], float]

# One part in this many of the queue is kept out of the codebook and measures its error: on the latents that a
# codebook was fitted to the error is too small, by 12% with 16 d latents a code.
_HELD_OUT_PART = 8
# The error is measured anew once this share of the queue has been replaced.
_MEASURED_EVERY = 0.5
_MEASURING_ITERATIONS = 10
# Factors that are tried in turn until the displacement is large enough. With larger ones most proposals are rejected.
_LADDER = tuple(0.25 * 2 ** (i / 2) for i in range(10))
# Between measurements the factor stays within this ratio of the one that was found.
_LEEWAY = 1.5
# How much of the ratio of error to displacement one step corrects: a batch shows the displacement within a few percent,
# so its noise must average out over several steps.
_GAIN = 0.2


class PerturbationScale:
    """The factor eta (or share s) of a perturbation, and the displacement and error that "auto" makes equal.

    "auto" keeps the root mean square displacement (zero if a proposal was rejected) equal to the root mean square error
    of a K-means codebook of the queue. The error is measured again whenever half of the queue is new; between
    measurements the factor follows the displacement that it is seen to cause.

    In a distributed job every rank must call `measure`, and `observe` with the displacement of all tokens; then all
    have the same values: the first rank measures for the others. The ranks fill the queue together, so it is measured
    again whenever as much is new as half of the queue times their number, or the queue has doubled.

    Args:
        setting: a positive number, or "auto".
        start: the factor used with "auto" until the first measurement.
        bounds: least and greatest factor, if the displacement is proportional to it; None if they must be found.

    Attributes:
        value: the factor, [] float64 (float32 on a device without it) where `move` put it. Only the device follows it.
        error_ms: the mean square error of the last measurement; None before.
    """

    def __init__(self, setting: float | Literal["auto"], start: float, bounds: tuple[float, float] | None = None):
        self.automatic = setting == "auto"
        self.value = _number(start if self.automatic else float(setting))
        self.error_ms: float | None = None
        self._measured_at = 0
        self._proportional = bounds is not None
        self._bounds = bounds

    def due(self, pushed: int, size: int) -> bool:
        """Whether enough of the queue is new to measure again: `pushed` latents ever, `size` of them held."""
        new, enough = pushed - self._measured_at, _MEASURED_EVERY * size * distributed.world_size()
        return self.error_ms is None or new >= enough or size >= 2 * self._measured_at

    @kept_for_training()
    def move(self, device: torch.device) -> None:
        """Keep the value on a device from now on."""
        self.value = self.value.to(device, precise_dtype(device))

    def measure(self, queue: Tensor, codebook_size: int, pushed: int, displacement_ms: Displacement) -> None:
        """Fit a codebook to most of the queue [S, d] and measure its mean square error on the rest.

        Args:
            queue: the same on every rank.
            displacement_ms: gives the mean square displacement that a factor causes; called if the factor must be
                found anew.
        """
        found: list[float] = []
        # The others wait meanwhile: measuring too would cost them as long, and rounding may differ between devices.
        with distributed.failing_together():
            if distributed.rank() == 0:
                self._measure(queue, codebook_size, pushed, displacement_ms)
                found = [float(self.value), self.error_ms, *(self._bounds or ())]
        found = distributed.from_first_rank(torch.tensor(found, device="cpu", dtype=torch.float64)).tolist()
        value, self.error_ms, *bounds = found
        self.value = torch.full_like(self.value, value)
        self._bounds = tuple(bounds) or None
        self._measured_at = pushed

    def _measure(self, queue: Tensor, codebook_size: int, pushed: int, displacement_ms: Displacement) -> None:
        generator = torch.Generator(queue.device).manual_seed(pushed)
        order = torch.randperm(len(queue), generator=generator, device=queue.device)
        held_out, fitted = queue[order].tensor_split([len(queue) // _HELD_OUT_PART])
        errors, _ = nearest_point(held_out, _fitted_codebook(fitted, codebook_size))
        self.error_ms = float(errors.square().mean())
        if self.automatic and not self._proportional:
            value = float(self.value)
            if self._bounds is not None and self._bounds[0] < value < self._bounds[1]:
                self._bounds = (value / _LEEWAY, min(value * _LEEWAY, _LADDER[-1]))
            else:
                self._find(displacement_ms)

    @kept_for_training()
    def observe(self, displacement_ms: Tensor) -> None:
        """Take note of the mean square displacement [] that the present factor caused; it lies where the value does."""
        if not self.automatic or self._bounds is None or not self.error_ms:
            return
        error_ms = torch.full_like(displacement_ms, self.error_ms)  # a number would be multiplied by the reciprocal
        followed = (self.value * (error_ms / displacement_ms) ** (_GAIN / 2)).clamp(*self._bounds)
        self.value = torch.where(displacement_ms > 0, followed, self.value)

    def forget(self) -> None:
        """Measure again at the next chance: the codebook size has changed."""
        self.error_ms = None
        if not self._proportional:
            self._bounds = None

    def _find(self, displacement_ms: Displacement) -> None:
        """Climb the ladder of factors to the first whose displacement is large enough."""
        # A larger radius moves accepted latents farther but has more proposals rejected, so the displacement has a
        # greatest value; if that is below the error, its factor is the best there is.
        tried: list[tuple[float, float]] = []
        for factor in _LADDER:
            tried.append((displacement_ms(factor), factor))
            if tried[-1][0] >= self.error_ms:
                break
        reached, best = max(tried, key=lambda pair: pair[0])
        if reached > self.error_ms and len(tried) > 1:
            (low_ms, low), (high_ms, high) = tried[-2:]
            part = (self.error_ms**0.5 - low_ms**0.5) / (high_ms**0.5 - low_ms**0.5)
            best = low + part * (high - low)
        self.value = torch.full_like(self.value, best)
        self._bounds = (best / _LEEWAY, best if reached < self.error_ms else best * _LEEWAY)

    def state_dict(self) -> dict:
        present = {"value": float(self.value), "error_ms": self.error_ms}
        return present | {"measured_at": self._measured_at, "bounds": self._bounds}

    def load_state_dict(self, state: dict) -> None:
        self.error_ms, self._measured_at = state["error_ms"], state["measured_at"]
        if self.automatic:
            self.value, self._bounds = _number(state["value"]), state["bounds"]


def _number(value: float) -> Tensor:
    return torch.tensor(value, device="cpu", dtype=torch.float64)


def _fitted_codebook(latents: Tensor, codebook_size: int) -> Tensor:
    """Of as many codes as there are distinct latents, if those are fewer than K."""
    try:
        return fit_kmeans(latents, codebook_size, max_iterations=_MEASURING_ITERATIONS).centroids
    except TooFewDistinctError as error:
        return _fitted_codebook(latents, error.distinct)
