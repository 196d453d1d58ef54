"""VQ, SimVQ and FSQ, the methods to compare with: adapters over vector-quantize-pytorch.

Their training forward is that library's; codes are searched and looked up as for every other kind.

Shapes: N tokens of a batch, d latent dimensions, K codes, levels L_1..L_d.
"""

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from vpvae_hf import distributed
from vpvae_hf.codebook import ScalarGrid
from vpvae_hf.neighbors import nearest_point
from vpvae_hf.settings import is_number, require, require_integer, require_weight

from .base import CodebookNotFittedError, Quantizer, QuantizerConfig, QuantizerOutput
from .levels import complete_levels
from .moments import rms_length


@dataclass(frozen=True, kw_only=True)
class VectorQuantizationConfig(QuantizerConfig):
    """Settings of `VectorQuantization`.

    Attributes:
        codebook_size: K.
        latent_dim: d.
        update: the codebook follows the latents by its "gradient" (arXiv 1711.00937, eq. 3), or by an exponential
            moving average ("ema", its appendix A.1).
        decay: of the moving average, also of that which counts how often a code is used.
        commitment_weight: beta, of the loss that draws latents to their codes.
        kmeans_start: start from K-means of the first batch, not at random.
        replace_below: a code used by fewer latents of a batch, in the moving average, is replaced by a latent; 0 for
            never.
        rotation_trick: gradients pass by rotation (arXiv 2410.06424), not straight through.
        fitted: True, the codebook is learned in training.

    Raises:
        ValueError: a value out of its range.
        ImportError: vector-quantize-pytorch is missing.
    """

    kind: ClassVar[str] = "vq"
    description: ClassVar[str] = "VQ-VAE: a codebook that is learned in training"
    paper: ClassVar[str | None] = "1711.00937"
    codebook_size: int = 1024
    latent_dim: int = 4
    update: Literal["gradient", "ema"] = "gradient"
    decay: float = 0.99
    commitment_weight: float = 0.25
    kmeans_start: bool = False
    replace_below: float = 0.0
    rotation_trick: bool = False
    fitted: bool = True

    def __post_init__(self):
        _check_sizes(self)
        require(self.update in ("gradient", "ema"), "update", self.update, "gradient or ema")
        require(is_number(self.decay) and 0 <= self.decay < 1, "decay", self.decay, "a number in [0, 1)")
        for name in ("commitment_weight", "replace_below"):
            require_weight(name, getattr(self, name))
        for name in ("kmeans_start", "rotation_trick"):
            require(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")


@dataclass(frozen=True, kw_only=True)
class SimVQConfig(QuantizerConfig):
    """Settings of `SimVQ`.

    Attributes:
        codebook_size: K.
        latent_dim: d.
        commitment_weight: of the loss that draws latents to their codes, relative to that which draws codes to latents.
        rotation_trick: gradients pass by rotation (arXiv 2410.06424), not straight through.
        fitted: True, the codebook is learned in training.

    Raises:
        ValueError: a value out of its range.
        ImportError: vector-quantize-pytorch is missing.
    """

    kind: ClassVar[str] = "simvq"
    description: ClassVar[str] = "SimVQ: a frozen random codebook under a linear map that is learned"
    paper: ClassVar[str | None] = "2411.02038"
    codebook_size: int = 1024
    latent_dim: int = 4
    commitment_weight: float = 0.25
    rotation_trick: bool = False
    fitted: bool = True

    def __post_init__(self):
        _check_sizes(self)
        require_weight("commitment_weight", self.commitment_weight)
        require(isinstance(self.rotation_trick, bool), "rotation_trick", self.rotation_trick, "true or false")


@dataclass(frozen=True, kw_only=True)
class FiniteScalarQuantizationConfig(QuantizerConfig):
    """Settings of `FiniteScalarQuantization`. Levels are given, or derived from `codebook_size`, as of kind "fsp".

    Attributes:
        codebook_size: K, the product of the levels. Where no levels are given, the size to come near to.
        latent_dim: d, the number of levels.
        levels: L_i, each at least 2, at least 3 where not symmetric.
        symmetric: the variant of arXiv 2411.19842, section 3.2, whose codes lie evenly from -1 to 1 in each dimension;
            otherwise the original (arXiv 2309.15505).
        noise_probability: share of tokens that get noise as wide as a cell in training, not their code; only symmetric.
        feature_scale: features are multiplied by it before the tanh. 0.8 is iFSQ: 2 sigmoid(1.6 a) - 1 = tanh(0.8 a),
            which makes a standard normal feature nearly uniform.
        fitted: True, the grid needs no fitting.

    Raises:
        ValueError: a value out of its range, or levels, dimension and size that contradict each other.
        ImportError: vector-quantize-pytorch is missing.
    """

    kind: ClassVar[str] = "fsq"
    description: ClassVar[str] = "FSQ: each latent dimension is rounded to a fixed grid"
    paper: ClassVar[str | None] = "2309.15505"
    code_defining_fields: ClassVar[tuple[str, ...]] = (
        *QuantizerConfig.code_defining_fields,
        "levels",
        "symmetric",
        "feature_scale",
    )
    codebook_size: int | None = None
    latent_dim: int | None = None
    levels: tuple[int, ...] | None = None
    symmetric: bool = True
    noise_probability: float = 0.5
    feature_scale: float = 1.0
    fitted: bool = True

    def __post_init__(self):
        complete_levels(self)
        require(isinstance(self.symmetric, bool), "symmetric", self.symmetric, "true or false")
        probability = self.noise_probability
        valid = is_number(probability) and 0 <= probability <= 1
        require(valid, "noise_probability", probability, "a number in [0, 1]")
        scale = self.feature_scale
        require(is_number(scale) and scale > 0, "feature_scale", scale, "a positive number")
        if not self.symmetric:
            require(probability == 0, "noise_probability", probability, "0 where symmetric is false")
            require(min(self.levels) >= 3, "levels", self.levels, "at least 3 where symmetric is false")
        require(self.fitted is True, "fitted", self.fitted, "true: a fixed grid needs no fitting")


class _LearnedCodebook(Quantizer):
    """A codebook [K, d] that is learned in training; the nearest code by Euclidean distance."""

    @abstractmethod
    def _codebook(self) -> Tensor: ...

    def nearest_codes(self, latents: Tensor) -> Tensor:
        _, codes = nearest_point(latents.detach().reshape(-1, self.latent_dim), self._codebook().detach())
        return codes.view(latents.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        return self._codebook()[codes]

    def _output(self, features: Tensor, latents: Tensor, codes: Tensor, loss: Tensor) -> QuantizerOutput:
        moved = rms_length(latents - features)
        metrics = {"quantizer/displacement_rms": moved, "quantizer/quantization_error_rms": moved}
        return QuantizerOutput(latents=latents, codes=codes, loss=loss, metrics=metrics)


class VectorQuantization(_LearnedCodebook):
    """VQ-VAE's quantizer (arXiv 1711.00937).

    In a distributed job all ranks have one codebook, if the process group was there when this was made.
    """

    config: VectorQuantizationConfig

    def __init__(self, config: VectorQuantizationConfig):
        super().__init__(config)
        self.library = _library().VectorQuantize(
            dim=config.latent_dim,
            codebook_size=config.codebook_size,
            decay=config.decay,
            kmeans_init=config.kmeans_start,
            threshold_ema_dead_code=config.replace_below,
            commitment_weight=0.0,  # it does not tell the two losses' weights apart
            rotation_trick=config.rotation_trick,
            ema_update=config.update == "ema",
            learnable_codebook=config.update == "gradient",
            sync_codebook=distributed.world_size() > 1,
        )

    def surrogate(self, features: Tensor, generator: torch.Generator | None) -> QuantizerOutput:
        with _randomness(generator):
            latents, codes, _ = self.library(features.reshape(1, -1, self.latent_dim))
        latents, codes = latents.view(features.shape), codes.view(features.shape[:-1])
        loss = self.config.commitment_weight * mse_loss(features, latents.detach())
        if self.config.update == "gradient":
            loss = loss + mse_loss(self._codebook()[codes], features.detach())
        return self._output(features, latents, codes, loss)

    def _codebook(self) -> Tensor:
        return self.library.codebook

    def check_codes(self) -> None:
        super().check_codes()
        if not self.library._codebook.initted:
            raise CodebookNotFittedError(
                "the codebook starts from the first batch of training (kmeans_start), and none was seen yet; train "
                "first"
            )


class SimVQ(_LearnedCodebook):
    """SimVQ (arXiv 2411.02038): a frozen random table, and a linear map of it that is learned."""

    config: SimVQConfig

    def __init__(self, config: SimVQConfig):
        super().__init__(config)
        self.library = _library().SimVQ(
            dim=config.latent_dim,
            codebook_size=config.codebook_size,
            rotation_trick=config.rotation_trick,
            input_to_quantize_commit_loss_weight=config.commitment_weight,
        )

    def surrogate(self, features: Tensor, generator: torch.Generator | None) -> QuantizerOutput:
        latents, codes, loss = self.library(features.reshape(1, -1, self.latent_dim))
        return self._output(features, latents.view(features.shape), codes.view(features.shape[:-1]), loss)

    def _codebook(self) -> Tensor:
        return self.library.codebook


class FiniteScalarQuantization(Quantizer):
    """FSQ (arXiv 2309.15505), by default its symmetric variant with noise (arXiv 2411.19842, section 3.2).

    Latents lie in [-1, 1], or for even levels of the original a little beyond.
    """

    config: FiniteScalarQuantizationConfig

    def __init__(self, config: FiniteScalarQuantizationConfig):
        super().__init__(config)
        _library()
        self._grid = ScalarGrid(config.levels)
        # No submodule: its constants are in no file, and loaders that build without memory would leave them unset.
        self._libraries: dict[torch.device, torch.nn.Module] = {}

    def to_latents(self, features: Tensor) -> Tensor:
        """[..., d] from unbounded features [..., d]."""
        levels, scaled = self._levels(features), self.config.feature_scale * features.float()
        if self.config.symmetric:
            return torch.tanh(scaled).to(features.dtype)
        half, offset = (levels - 1) * (1 + 1e-3) / 2, (levels % 2 == 0) * 0.5
        bounded = torch.tanh(scaled + (offset / half).atanh()) * half - offset
        return (bounded / (levels // 2)).to(features.dtype)

    def surrogate(self, features: Tensor, generator: torch.Generator | None) -> QuantizerOutput:
        continuous = self.to_latents(features)
        flat = self.config.feature_scale * features.reshape(-1, self.latent_dim)
        rounded = self._fsq(features.device).quantize(flat).view(features.shape)
        latents = rounded
        if self.config.noise_probability > 0:
            # Not the library's noise, which moves the codes themselves, by up to 1/2 whatever the levels.
            noise = 2 * torch.rand(features.shape, device=features.device, generator=generator) - 1
            noisy = continuous + noise / (self._levels(features) - 1)
            token = torch.rand(*features.shape[:-1], 1, device=features.device, generator=generator)
            latents = torch.where(token < self.config.noise_probability, noisy, rounded)
        codes = self.nearest_codes(continuous.detach())
        metrics = {
            "quantizer/displacement_rms": rms_length(latents - continuous),
            "quantizer/quantization_error_rms": rms_length(rounded - continuous),
        }
        return QuantizerOutput(latents=latents, codes=codes, loss=features.new_zeros(()), metrics=metrics)

    def nearest_codes(self, latents: Tensor) -> Tensor:
        levels = self._levels(latents)
        if self.config.symmetric:
            cells = ((latents + 1) / 2 * (levels - 1) + 0.5).floor()
        else:
            cells = (latents * (levels // 2)).round() + levels // 2
        return self._grid.to_codes(cells.clamp(min=0).minimum(levels - 1).long())

    def lookup(self, codes: Tensor) -> Tensor:
        cells, levels = self._grid.to_cells(codes).float(), self._levels(codes)
        return cells * 2 / (levels - 1) - 1 if self.config.symmetric else (cells - levels // 2) / (levels // 2)

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor(self.config.levels, device=like.device, dtype=torch.float32)

    def _fsq(self, device: torch.device):
        if device not in self._libraries:
            levels = list(self.config.levels)
            made = _library().FSQ(levels, return_indices=False, preserve_symmetry=self.config.symmetric)
            self._libraries = {device: made.to(device)}
        return self._libraries[device]


def _library():
    try:
        import vector_quantize_pytorch
    except ImportError as error:
        raise ImportError(
            "the quantizers vq, simvq and fsq need vector-quantize-pytorch; install it with: "
            "pip install 'vpvae_hf[baselines]'"
        ) from error
    return vector_quantize_pytorch


@contextlib.contextmanager
def _randomness(generator: torch.Generator | None) -> Iterator[None]:
    """Have the library, which takes no generator, draw from this one; leaves torch's global one as it was."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), device=generator.device, generator=generator))
    with torch.random.fork_rng([] if generator.device.type == "cpu" else [generator.device]):
        torch.manual_seed(seed)
        yield


def _check_sizes(config: QuantizerConfig) -> None:
    for name, least in (("codebook_size", 2), ("latent_dim", 1)):
        require_integer(name, getattr(config, name), least)
    require(config.fitted is True, "fitted", config.fitted, "true: the codebook is learned in training")
