"""No quantization: it shows the best quality that a tokenizer of the same latent dimension could reach."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vpvae_hf.settings import require, require_integer, require_weight

from .base import NoCodesError, Quantizer, QuantizerConfig, QuantizerOutput
from .normalization import normalization_loss


@dataclass(frozen=True, kw_only=True)
class ContinuousConfig(QuantizerConfig):
    """Settings of `Continuous`.

    Attributes:
        mean_weight, variance_weight: l1 and l2 of the normalization loss, eq. (11); both 0 switch it off.
    """

    kind: ClassVar[str] = "none"
    description: ClassVar[str] = "none: continuous latents, no codes"
    codebook_size: None = None
    mean_weight: float = 0.1
    variance_weight: float = 0.07

    def __post_init__(self):
        require(self.codebook_size is None, "codebook_size", self.codebook_size, "null: there are no codes")
        require_integer("latent_dim", self.latent_dim, 1)
        self._check_fitted()
        for name in ("mean_weight", "variance_weight"):
            require_weight(name, getattr(self, name))


class Continuous(Quantizer):
    """Passes latents on as they are, in training and after it."""

    config: ContinuousConfig

    def training_forward(self, features: Tensor, generator: torch.Generator | None) -> QuantizerOutput:
        flat = features.reshape(-1, self.latent_dim)
        loss = normalization_loss(flat, self.config.mean_weight, self.config.variance_weight)
        return QuantizerOutput(latents=features, codes=None, loss=loss, metrics={})

    def nearest_codes(self, latents: Tensor) -> Tensor:
        raise AssertionError("there are no codes")

    lookup = nearest_codes

    def check_codes(self) -> None:
        raise NoCodesError(
            "a quantizer of the kind 'none' is continuous and has no codes; use encode() and "
            "decode(latents, force_not_quantize=True) of the model, or give it another kind by set_quantizer"
        )
