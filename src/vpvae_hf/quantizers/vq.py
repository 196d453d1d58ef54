"""VQ-VAE's quantizer: a codebook that is learned in training."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from vpvae_hf import distributed
from vpvae_hf.randomness import seeded_by
from vpvae_hf.settings import is_number, require, require_name, require_weight
from vpvae_hf.tensors import is_tracing, without_bad_values

from .base import CodebookNotFittedError, HoldsValues, QuantizerOutput
from .baselines import LearnedCodebook, LearnedCodebookConfig, library


@dataclass(frozen=True, kw_only=True)
class VectorQuantizationConfig(LearnedCodebookConfig):
    """Settings of `VectorQuantization`.

    Attributes:
        update: how the codebook follows the latents: by its gradient ("gradient", arXiv 1711.00937, eq. 3), or by an
            exponential moving average ("ema", appendix A.1 of that paper).
        decay: decay of the moving averages of the codebook and of how often a code is used.
        kmeans_start: start from K-means of the first batch, not at random.
        replace_below: a code is replaced by a latent if, in the moving average, fewer latents per batch than this use
            it; with 0 no code is replaced.
    """

    kind: ClassVar[str] = "vq"
    description: ClassVar[str] = "VQ-VAE: a codebook that is learned in training"
    paper: ClassVar[str | None] = "1711.00937"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"codebook_size": 64, "latent_dim": 3},
        {"codebook_size": 64, "latent_dim": 3, "update": "ema", "kmeans_start": True, "replace_below": 1.0},
        {"codebook_size": 48, "latent_dim": 3, "rotation_trick": True, "learned_size": 64},
    )
    update: Literal["gradient", "ema"] = "gradient"
    decay: float = 0.99
    kmeans_start: bool = False
    replace_below: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        require_name("update", self.update, ("gradient", "ema"))
        require(is_number(self.decay) and 0 <= self.decay < 1, "decay", self.decay, "a number in [0, 1)")
        require_weight("replace_below", self.replace_below)
        require(isinstance(self.kmeans_start, bool), "kmeans_start", self.kmeans_start, "true or false")


class VectorQuantization(LearnedCodebook):
    """VQ-VAE's quantizer (arXiv 1711.00937).

    In a distributed job all ranks share one codebook if the process group exists when the quantizer is made.
    """

    config: VectorQuantizationConfig

    def __init__(self, config: VectorQuantizationConfig):
        super().__init__(config)
        self.library = library().VectorQuantize(
            dim=config.latent_dim,
            codebook_size=config.trained_size,
            decay=config.decay,
            kmeans_init=config.kmeans_start,
            threshold_ema_dead_code=config.replace_below,
            commitment_weight=0.0,  # the library has one weight for the two losses
            rotation_trick=config.rotation_trick,
            ema_update=config.update == "ema",
            learnable_codebook=config.update == "gradient",
            sync_codebook=distributed.world_size() > 1,
        )
        self._has_started = HoldsValues()

    def _start_from(self, codebook: Tensor) -> None:
        learned = self.library._codebook
        learned.embed.copy_(codebook)
        learned.embed_avg.copy_(codebook)
        learned.cluster_size.fill_(1.0)
        learned.initted.fill_(True)

    def training_forward(self, features: Tensor, generator: torch.Generator | None) -> QuantizerOutput:
        with seeded_by(generator, features.device):  # the library takes no generator
            # The library's moving averages would keep NaN for good.
            latents, codes, _ = self.library(without_bad_values(features).reshape(1, -1, self.latent_dim))
        loss = self.config.commitment_weight * mse_loss(features, latents.view(features.shape).detach())
        if self.config.update == "gradient":
            loss = loss + mse_loss(self.library.codebook[codes.view(features.shape[:-1])], features.detach())
        return self._output(features, latents, codes, loss)

    def check_codes(self) -> None:
        super().check_codes()
        learned = self.fitted_codebook is None
        if learned and not is_tracing() and not self._has_started(self.library._codebook.initted):
            raise CodebookNotFittedError(
                "the codebook starts from the first batch of training (kmeans_start), which has not come yet; train "
                "first"
            )
