"""The commitment loss of VP and FSP, which replaces the normalization loss late in a training run."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vpvae_hf.settings import is_number, require, require_share, require_weight


@dataclass(frozen=True, kw_only=True)
class CommitmentConfig:
    """Settings of the commitment loss.

    Attributes:
        commitment_weight: weight of the commitment loss, the mean over tokens and dimensions of (z - c(z))^2, where
            c(z) is the code that latent z is drawn to. During the ramp it replaces the normalization loss. 0 is the
            paper's method, which has no such loss.
        commitment_ramp: the ramp: two points of the run, from 0 (its start) to 1 (its end), between which the
            commitment loss gradually replaces the normalization loss. `set_progress` sets the present point; a loop
            that does not call it trains with the normalization loss alone.
    """

    commitment_weight: float = 0.25
    commitment_ramp: tuple[float, float] = (0.55, 0.7)

    def __post_init__(self):
        super().__post_init__()
        require_weight("commitment_weight", self.commitment_weight)
        given = self.commitment_ramp
        limits = tuple(given) if isinstance(given, Sequence) else ()
        valid = len(limits) == 2 and all(map(is_number, limits)) and 0 <= limits[0] <= limits[1] <= 1
        require(valid, "commitment_ramp", given, "two numbers in [0, 1], the smaller first")
        object.__setattr__(self, "commitment_ramp", limits)


class Commitment:
    """What the quantizers with a commitment loss share."""

    config: CommitmentConfig
    _progress = 0.0

    def set_progress(self, progress: float) -> None:
        require_share("progress", progress)
        self._progress = progress

    def _committed(self) -> float:
        """The part of the normalization loss, 0 to 1, that the commitment loss has replaced."""
        begins, ends = self.config.commitment_ramp
        if not self.config.commitment_weight or self._progress < begins:
            return 0.0
        return 1.0 if self._progress >= ends else (self._progress - begins) / (ends - begins)

    def _loss(self, normalization: Tensor, committed: float | Tensor, latents: Tensor, codes: Tensor) -> Tensor:
        """The quantizer's loss [], from latents and the vectors of the codes that they are drawn to, both [..., d]."""
        commitment = self.config.commitment_weight * (latents - codes).square().mean()
        return (1 - committed) * normalization + committed * commitment
