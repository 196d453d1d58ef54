"""SimVQ: a frozen random codebook under a linear map that is learned."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import QuantizerOutput
from .baselines import LearnedCodebook, LearnedCodebookConfig, library


@dataclass(frozen=True, kw_only=True)
class SimVQConfig(LearnedCodebookConfig):
    """Settings of `SimVQ`: those of every learned codebook."""

    kind: ClassVar[str] = "simvq"
    description: ClassVar[str] = "SimVQ: a frozen random codebook under a linear map that is learned"
    paper: ClassVar[str | None] = "2411.02038"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"codebook_size": 64, "latent_dim": 3},
        {"codebook_size": 72, "latent_dim": 3, "rotation_trick": True, "learned_size": 64, "metric": "decoder"},
    )


class SimVQ(LearnedCodebook):
    """SimVQ (arXiv 2411.02038): a frozen random table, and a linear map of it that is learned."""

    config: SimVQConfig

    def __init__(self, config: SimVQConfig):
        super().__init__(config)
        self.library = library().SimVQ(
            dim=config.latent_dim,
            codebook_size=config.trained_size,
            rotation_trick=config.rotation_trick,
            input_to_quantize_commit_loss_weight=config.commitment_weight,
        )

    def _start_from(self, codebook: Tensor) -> None:
        self.library.frozen_codebook.copy_(codebook)
        self.library.code_transform.weight.copy_(torch.eye(self.latent_dim))

    def training_forward(self, features: Tensor, generator: torch.Generator | None) -> QuantizerOutput:
        return self._output(features, *self.library(features.reshape(1, -1, self.latent_dim)))
