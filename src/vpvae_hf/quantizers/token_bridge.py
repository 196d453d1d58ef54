"""TokenBridge (arXiv 2503.16430): a variational autoencoder whose latents are cut into bins after training.

Shapes: F = 2 d features (means, then logarithms of variances), K bins in each dimension, and one code per dimension.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vpvae_hf.codebook import ScalarGrid
from vpvae_hf.settings import require_weight
from vpvae_hf.tensors import constant

from .base import Quantizer, QuantizerConfig, QuantizerOutput
from .normalization import rms_length

# Beyond it a variance, or its inverse, means nothing, since features have a variance of about 1.
_LOG_VARIANCE_LIMIT = 20.0


@dataclass(frozen=True, kw_only=True)
class TokenBridgeConfig(QuantizerConfig):
    """Settings of `TokenBridge`.

    Attributes:
        codebook_size: K, the number of bins in each dimension; a token has d codes, so it can take K^d values.
        kl_weight: weight of the Kullback-Leibler divergence from the standard normal distribution, summed over
            dimensions.
    """

    kind: ClassVar[str] = "token_bridge"
    description: ClassVar[str] = "TokenBridge: a variational autoencoder, each dimension cut into bins"
    paper: ClassVar[str | None] = "2503.16430"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"codebook_size": 4, "latent_dim": 3},)
    codebook_size: int = 4
    kl_weight: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        require_weight("kl_weight", self.kl_weight)

    feature_dim = property(lambda self: 2 * self.latent_dim)
    code_groups = property(lambda self: self.latent_dim)


class TokenBridge(Quantizer):
    """Trains on samples of a normal posterior; each dimension of its mean is then cut at percentiles of the prior.

    A bin stands for the mean of the standard normal distribution within it.
    """

    config: TokenBridgeConfig

    def __init__(self, config: TokenBridgeConfig):
        super().__init__(config)
        self._grid = ScalarGrid((config.codebook_size,) * config.latent_dim)
        self._centroids = tuple(_bin_means(config.codebook_size))

    def to_latents(self, features: Tensor) -> Tensor:
        """[..., d] means from features [..., 2 d]."""
        return features[..., : self.latent_dim]

    def training_forward(self, features: Tensor, generator: torch.Generator | None) -> QuantizerOutput:
        mean, log_variance = features.chunk(2, dim=-1)
        log_variance = log_variance.clamp(-_LOG_VARIANCE_LIMIT, _LOG_VARIANCE_LIMIT)
        noise = torch.randn(mean.shape, device=mean.device, dtype=torch.float32, generator=generator)
        displacement = (log_variance / 2).exp() * noise
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=-1).mean()
        quantized = self.lookup(self.nearest_codes(mean.detach().nan_to_num()))
        metrics = {
            "quantizer/displacement_rms": rms_length(displacement),
            "quantizer/quantization_error_rms": rms_length(quantized - mean),
            "quantizer/divergence": divergence.detach(),
        }
        loss = self.config.kl_weight * divergence
        return QuantizerOutput(latents=mean + displacement, codes=None, loss=loss, metrics=metrics)

    def nearest_codes(self, latents: Tensor) -> Tensor:
        cells = self._grid.cells(torch.special.ndtr(latents))
        return cells if self.code_groups > 1 else cells.squeeze(-1)

    def lookup(self, codes: Tensor) -> Tensor:
        centroids = constant(self._centroids, torch.float32, codes)
        return centroids[codes if self.code_groups > 1 else codes.unsqueeze(-1)]


def _bin_means(bins: int) -> list[float]:
    """Means of the standard normal distribution within bins of equal mass, [K]."""
    # On the CPU even if a loader builds the model on the meta device.
    edges = torch.special.ndtri(torch.arange(bins + 1, dtype=torch.float64, device="cpu") / bins)
    density = (-edges.square() / 2).exp() / math.sqrt(2 * math.pi)
    return ((density[:-1] - density[1:]) * bins).tolist()
