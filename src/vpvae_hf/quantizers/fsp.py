"""FSP: squash each dimension to a uniform distribution, train with noise as wide as a cell, quantize on a fixed grid.

Shapes: levels L_1..L_d, K = L_1 * ... * L_d codes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vpvae_hf.settings import is_number, require, require_name, require_share, require_weight

from .base import QuantizerOutput
from .commitment import Commitment, CommitmentConfig
from .normalization import normalization_loss, rms_length
from .scalar import ScalarGridConfig, ScalarGridQuantizer

# Standard deviation 1 for a uniform latent in [0, 1].
_OUTPUT_SCALE = math.sqrt(12)


# Named functions, since a model that holds a lambda cannot be pickled.
def _scaled_tanh(a: Tensor) -> Tensor:
    return (torch.tanh(a) + 1) / 2


def _cauchy_cdf(a: Tensor) -> Tensor:
    return torch.atan(a) / math.pi + 0.5


def _laplace_cdf(a: Tensor) -> Tensor:
    tail = 0.5 * torch.exp(-a.abs())
    return torch.where(a < 0, tail, 1 - tail)


# Each activation is the distribution function of the features that it makes uniform. The number is the variance of that
# distribution, the target of eq. (14), which also draws features to mean 0, about which all of these distributions are
# symmetric. The Cauchy distribution has no variance, so it is trained without a target.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float | None]] = {
    "tanh": (_scaled_tanh, math.pi**2 / 12),
    "sigmoid": (torch.sigmoid, math.pi**2 / 3),
    "normal": (torch.special.ndtr, 1.0),
    "laplace": (_laplace_cdf, 2.0),
    "cauchy": (_cauchy_cdf, None),
}


@dataclass(frozen=True, kw_only=True)
class ScalarPerturbationConfig(CommitmentConfig, ScalarGridConfig):
    """Settings of `ScalarPerturbation`, and of `CommitmentConfig`: latents are drawn to the middles of their cells.

    Attributes:
        activation: a name in `ACTIVATIONS`.
        eta: width of the noise in cells, eq. (16); 1 is a whole cell.
        perturb_probability: share of tokens that are perturbed in training; the others are quantized straight-through.
        mean_weight, variance_weight: l1 and l2 of the normalization loss, eq. (14); both 0 switch it off. They have no
            effect with the activation "cauchy", whose distribution has no variance.
    """

    kind: ClassVar[str] = "fsp"
    description: ClassVar[str] = "FSP: trained with noise on each latent dimension, the codes are a fixed grid"
    paper: ClassVar[str | None] = "2602.17133"
    code_defining_fields: ClassVar[tuple[str, ...]] = (*ScalarGridConfig.code_defining_fields, "activation")
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"levels": [5, 4, 3]},
        *(
            {"levels": [5, 4, 3], "activation": activation, "refitted": activation == "laplace"}
            for activation in ACTIVATIONS
            if activation != "tanh"
        ),
    )
    former_fields: ClassVar[Mapping[str, Any]] = {"variance_scale": 1.0}
    activation: str = "tanh"
    eta: float = 1.0
    perturb_probability: float = 0.5
    mean_weight: float = 0.1
    variance_weight: float = 0.07

    def __post_init__(self):
        super().__post_init__()
        require_name("activation", self.activation, ACTIVATIONS)
        require(is_number(self.eta) and self.eta > 0, "eta", self.eta, "a positive number")
        require_share("perturb_probability", self.perturb_probability)
        for name in ("mean_weight", "variance_weight"):
            require_weight(name, getattr(self, name))


class ScalarPerturbation(Commitment, ScalarGridQuantizer):
    """Scalar noise in place of rounding; codes are cells of a fixed grid, used equally often by uniform latents.

    With g the activation, latents are (g(a) - 1/2) * sqrt(12) for features a; they have unit variance if g(a) is
    uniform. Late in the run, once the encoder has learned, the commitment loss draws latents to the middles of their
    cells.
    """

    config: ScalarPerturbationConfig

    def __init__(self, config: ScalarPerturbationConfig):
        super().__init__(config)
        self._activation, self._target_variance = ACTIVATIONS[config.activation]

    def to_latents(self, features: Tensor) -> Tensor:
        """[..., d] in [-sqrt(3), sqrt(3)] from unbounded features [..., d]."""
        return _from_unit(self._activation(features.float())).to(features.dtype)

    def training_forward(self, features: Tensor, generator: torch.Generator | None) -> QuantizerOutput:
        config, unit = self.config, self._activation(features)
        # Eq. (16): noise that would move a value out of [0, 1] is left out.
        noise = torch.rand(unit.shape, device=unit.device, dtype=torch.float32, generator=generator) - 0.5
        moved = unit.detach() + config.eta / self.grid.levels_like(unit) * noise
        kept = (moved >= 0) & (moved <= 1)
        perturbed = torch.where(kept, moved, unit.detach())
        centroids = self.grid.centroids(self.grid.cells(unit.detach()))
        token = torch.rand(*unit.shape[:-1], 1, device=unit.device, dtype=torch.float32, generator=generator)
        replaced = torch.where(token < config.perturb_probability, perturbed, centroids)
        normalization = features.new_zeros(())
        if self._target_variance is not None:
            flat = features.reshape(-1, self.latent_dim)
            target = self._target_variance
            normalization = normalization_loss(flat, config.mean_weight, config.variance_weight, target)
        committed = self._committed()
        loss = self._loss(normalization, committed, _from_unit(unit), _from_unit(centroids))
        # The displacement is that of the perturbed tokens; the quantization error is that of rounding all tokens.
        metrics = {
            "quantizer/displacement_rms": _OUTPUT_SCALE * rms_length(perturbed - unit),
            "quantizer/quantization_error_rms": _OUTPUT_SCALE * rms_length(centroids - unit),
            "quantizer/acceptance": kept.float().mean(),
            "quantizer/committed": features.new_full((), committed),
        }
        latents = _from_unit(unit + (replaced - unit.detach()))  # eq. (17): no gradient from the displacement
        return QuantizerOutput(latents=latents, codes=None, loss=loss, metrics=metrics)

    def even_cells(self, latents: Tensor) -> Tensor:
        return self.grid.cells(latents / _OUTPUT_SCALE + 0.5)

    def even_values(self, cells: Tensor) -> Tensor:
        return _from_unit(self.grid.centroids(cells))


def _from_unit(unit: Tensor) -> Tensor:
    return (unit - 0.5) * _OUTPUT_SCALE
