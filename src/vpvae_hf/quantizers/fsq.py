"""FSQ: each latent dimension is rounded to a fixed grid. Shapes: levels L_1..L_d, K = L_1 * ... * L_d codes."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vpvae_hf.settings import require, require_share

from .base import QuantizerOutput
from .baselines import library
from .normalization import rms_length
from .scalar import ScalarGridConfig, ScalarGridQuantizer


@dataclass(frozen=True, kw_only=True)
class FiniteScalarQuantizationConfig(ScalarGridConfig):
    """Settings of `FiniteScalarQuantization`.

    Attributes:
        symmetric: the variant of arXiv 2411.19842, section 3.2, whose codes lie evenly from -1 to 1 in each dimension;
            false for the original (arXiv 2309.15505), which needs at least 3 levels in each dimension.
        noise_probability: share of tokens that get noise as wide as a cell in training, in place of their code; for the
            symmetric variant only.
    """

    kind: ClassVar[str] = "fsq"
    description: ClassVar[str] = "FSQ: each latent dimension is rounded to a fixed grid"
    paper: ClassVar[str | None] = "2309.15505"
    code_defining_fields: ClassVar[tuple[str, ...]] = (*ScalarGridConfig.code_defining_fields, "symmetric")
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"levels": [5, 4, 3]},
        {"levels": [5, 4, 3], "symmetric": False, "noise_probability": 0},
        {"levels": [5, 4, 3], "refitted": True},
    )
    symmetric: bool = True
    noise_probability: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        require(isinstance(self.symmetric, bool), "symmetric", self.symmetric, "true or false")
        require_share("noise_probability", self.noise_probability)
        if not self.symmetric:
            require(self.noise_probability == 0, "noise_probability", self.noise_probability, "0 if symmetric is false")
            require(min(self.levels) >= 3, "levels", self.levels, "at least 3 if symmetric is false")


class FiniteScalarQuantization(ScalarGridQuantizer):
    """FSQ (arXiv 2309.15505), by default its symmetric variant with noise (arXiv 2411.19842, section 3.2).

    Latents lie in [-1, 1]; for even numbers of levels in the original, also a little beyond.
    """

    config: FiniteScalarQuantizationConfig

    def __init__(self, config: FiniteScalarQuantizationConfig):
        super().__init__(config)
        library()
        # Not submodules: their constants are not saved, and loaders that build a model on the meta device would not set
        # them.
        self._libraries: dict[torch.device, torch.nn.Module] = {}

    def to_latents(self, features: Tensor) -> Tensor:
        """[..., d] from unbounded features [..., d]."""
        if self.config.symmetric:
            return torch.tanh(features.float()).to(features.dtype)
        levels = self.grid.levels_like(features).float()
        half, offset = (levels - 1) * (1 + 1e-3) / 2, (levels % 2 == 0) * 0.5
        bounded = torch.tanh(features.float() + (offset / half).atanh()) * half - offset
        return (bounded / (levels // 2)).to(features.dtype)

    def training_forward(self, features: Tensor, generator: torch.Generator | None) -> QuantizerOutput:
        continuous = self.to_latents(features)
        rounded = self._fsq(features.device).quantize(features.reshape(-1, self.latent_dim))
        rounded = rounded.view(features.shape).float()  # the library's constants have torch's default dtype
        latents = rounded
        if self.config.noise_probability > 0:
            # Not the library's noise, which moves the codes themselves, by up to 1/2 whatever the number of levels.
            noise = 2 * torch.rand(features.shape, device=features.device, dtype=torch.float32, generator=generator) - 1
            noisy = continuous + noise / (self.grid.levels_like(features) - 1)
            token = torch.rand(
                *features.shape[:-1], 1, device=features.device, dtype=torch.float32, generator=generator
            )
            latents = torch.where(token < self.config.noise_probability, noisy, rounded)
        metrics = {
            "quantizer/displacement_rms": rms_length(latents - continuous),
            "quantizer/quantization_error_rms": rms_length(rounded - continuous),
        }
        codes = self.grid.to_codes(self.even_cells(continuous.detach())) if self.level_values is None else None
        return QuantizerOutput(latents=latents, codes=codes, loss=features.new_zeros(()), metrics=metrics)

    def even_cells(self, latents: Tensor) -> Tensor:
        levels = self.grid.levels_like(latents)
        if self.config.symmetric:
            cells = ((latents + 1) / 2 * (levels - 1) + 0.5).floor()
        else:
            cells = (latents * (levels // 2)).round() + levels // 2
        return cells.clamp(min=0).minimum(levels - 1).long()

    def even_values(self, cells: Tensor) -> Tensor:
        cells, levels = cells.float(), self.grid.levels_like(cells)
        return cells * 2 / (levels - 1) - 1 if self.config.symmetric else (cells - levels // 2) / (levels // 2)

    def _fsq(self, device: torch.device):
        if device not in self._libraries:
            levels = list(self.config.levels)
            made = library().FSQ(levels, return_indices=False, preserve_symmetry=self.config.symmetric)
            self._libraries = {device: made.to(device)}
        return self._libraries[device]
