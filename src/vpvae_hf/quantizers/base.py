"""The one interface of all quantizers.

Shapes, here and in every kind's file: [...] stands for any leading dimensions, one token at each position, or N tokens
if they are flattened; F features, d latent dimensions, K codes. Codes are [...], or [..., G] if a token has G codes,
one for each group of dimensions.
"""

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vpvae_hf.settings import require, require_integer
from vpvae_hf.tensors import as_codes, as_tensor, device_for, is_tracing, require_finite, without_bad_values

from .normalization import rms_length


class NoCodesError(RuntimeError):
    """A quantizer was asked for codes and has none."""


class CodebookNotFittedError(NoCodesError):
    """A quantizer was asked for codes before its codebook was fitted."""


@dataclass(frozen=True, kw_only=True)
class QuantizerOutput:
    """What a quantizer returns.

    Attributes:
        latents: [..., d] float32, what the decoder reads.
        codes: [...] or [..., G] int64 in 0..K-1; None if there are none, e.g. during training if the codes come from a
            fit after training.
        loss: [] the quantizer's own loss, which is added to the reconstruction loss without a further weight.
        metrics: detached scalars, e.g. "quantizer/acceptance".
    """

    latents: Tensor
    codes: Tensor | None
    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """Settings of a quantizer; a plain dictionary in JSON. Every kind has the last three fields and adds its own.

    A value out of its range raises a ValueError that states the valid range.

    Attributes:
        kind: the name by which settings choose the quantizer, its key in the registry.
        description: what a model card says about the method.
        paper: the arXiv number of the method; None if it has none.
        code_defining_fields: the fields that decide, in addition to weights and buffers, which codes given features
            get.
        examples: settings of a small quantizer of each variant, without "kind"; the contract tests run with each of
            them.
        needs_fitting: whether there are no codes until a codebook is fitted after training.
        fits: what `fit_codebook` fits: "codebook", or "levels" of each dimension; None if nothing can be fitted.
        former_fields: settings of earlier versions that saved configs may hold, each with the only value still allowed.
        codebook_size: K; None if there are no codes.
        latent_dim: d.
        fitted: whether the codebook is fitted, which `fit_codebook` sets; always true if it needs no fitting.
    """

    kind: ClassVar[str]
    description: ClassVar[str]
    paper: ClassVar[str | None] = None
    code_defining_fields: ClassVar[tuple[str, ...]] = ("codebook_size", "latent_dim")
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    needs_fitting: ClassVar[bool] = False
    fits: ClassVar[str | None] = None
    former_fields: ClassVar[Mapping[str, Any]] = {}
    codebook_size: int | None = 1024
    latent_dim: int = 4
    fitted: bool = True

    def __post_init__(self):
        require_integer("codebook_size", self.codebook_size, 2)
        require_integer("latent_dim", self.latent_dim, 1)
        self._check_fitted()

    def _check_fitted(self) -> None:
        valid = "true or false" if self.needs_fitting else f"true: the kind {self.kind!r} needs no fitting"
        require(self.fitted is True or (self.fitted is False and self.needs_fitting), "fitted", self.fitted, valid)

    feature_dim = property(lambda self: self.latent_dim, doc="F, how many values the encoder gives for a token.")
    code_groups = property(lambda self: 1, doc="G, how many codes a token has.")

    def without_fit(self) -> "QuantizerConfig":
        """The settings as they were before anything was fitted after training."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """The settings with their kind, as JSON stores them."""
        fields = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}
        return {"kind": self.kind, **fields}


def _onloaded(method: Callable) -> Callable:
    """Wrap a method so that weights and buffers that accelerate has offloaded are loaded while it runs."""

    @functools.wraps(method)
    def wrapped(self: nn.Module, *args):
        offloaded = [module for module in self.modules() if hasattr(module, "_hf_hook")]
        for module in offloaded:
            module._hf_hook.pre_forward(module)
        try:
            return method(self, *args)
        finally:
            for module in offloaded:
                module._hf_hook.post_forward(module, None)

    return wrapped


class Quantizer(nn.Module, ABC):
    """Maps features to continuous latents, latents to codes, and codes back to latents.

    Computes in float32 with autocast off, and stays float32 when the model around it is cast, so that the same latents
    have the same codes everywhere. Switching between `train()` and `eval()` computes nothing. Methods raise a
    ValueError for vectors of another dimension or with NaN or infinite values, and for codes outside 0..K-1 or with
    another number of groups G; a TypeError for the wrong kind of dtype (integer vectors, floating-point codes); and, if
    they need codes, the errors of `check_codes`. A graph that torch makes (compile, export) checks no values, so it
    raises no error that depends on them.

    Subclasses implement `training_forward`, `nearest_codes` and `lookup`; `to_latents` if features are not the latents;
    and `live_codebook` if they keep a codebook during training. Those with a codebook that can be fitted after training
    derive from `CodebookQuantizer`, those with a grid of levels from `ScalarGridQuantizer`.
    """

    def __init__(self, config: QuantizerConfig):
        super().__init__()
        self.config = config
        self._holds_fit = HoldsValues()

    codebook_size = property(
        lambda self: self.config.codebook_size, doc="K, the number of codes; None if there are none."
    )
    code_groups = property(lambda self: self.config.code_groups, doc="G, how many codes a token has.")
    latent_dim = property(lambda self: self.config.latent_dim, doc="d, the dimension of a latent.")
    needs_fitting = property(lambda self: self.config.needs_fitting, doc="Whether a codebook is fitted after training.")

    @property
    def has_codes(self) -> bool:
        """Whether latents can be quantized, if necessary after a fit."""
        return self.codebook_size is not None

    @property
    def training_state(self) -> Any:
        """State that a checkpoint holds in addition to the weights, for `Accelerator.register_for_checkpointing`.

        None if training needs no other state.
        """
        return None

    def live_codebook(self) -> Tensor | None:
        """A codebook [K, d] of the present latents, the same on every rank; None if the quantizer keeps none (yet)."""
        return None

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Each K that `select_codebook` accepts, in rising order; () before a needed fit, or if there are no codes."""
        return (self.codebook_size,) if self.has_codes and self.config.fitted else ()

    def select_codebook(self, codebook_size: int) -> None:
        """Select the fitted codebook of this size, which then decides the codes; a ValueError if there is none."""
        require_integer("codebook_size", codebook_size, 2)
        if codebook_size not in self.codebook_sizes:
            sizes = ", ".join(map(str, self.codebook_sizes)) or "none"
            remedy = (
                "Fit one with vpvae_hf.fit_codebook, or vpvae fit"
                if self.config.fits == "codebook"
                else "Leave codebook_size out"
            )
            raise ValueError(f"there is no codebook of {codebook_size} codes; there are: {sizes}. {remedy}")

    @property
    def code_state(self) -> dict[str, Tensor]:
        """The weights and buffers, by name, that decide which codes given features get."""
        return self.state_dict()

    def set_progress(self, progress: float) -> None:
        """Set, before each forward pass, how much of the training run is over, from 0 to 1: steps done / all steps.

        `VectorPerturbation` and `ScalarPerturbation` change their loss during a run, and raise a ValueError for a
        number outside 0 to 1. The recipes' training loop calls this method; other loops should call it, too.
        """

    def reconfigure(self, config: QuantizerConfig) -> bool:
        """Change the settings and keep the state that stays valid. If they need a new quantizer, change nothing.

        Returns:
            Whether the quantizer now has these settings, apart from those that a fit after training sets.
        """
        return config.without_fit() == self.config.without_fit()

    @property
    def fitted_tensors(self) -> tuple[Tensor, ...]:
        """Buffers that, according to the settings, were fitted after training; () if there are none."""
        return ()

    def drop_fit(self) -> None:
        """Drop what was fitted after training. The codes are then those of training, if training has any."""
        self.config = self.config.without_fit()

    def forward(self, features: Tensor, *, generator: torch.Generator | None = None) -> QuantizerOutput:
        """`training_forward(features)` in train mode, `decode(encode(to_latents(features)))` in eval mode.

        Args:
            features: [..., F] what the encoder gives, any floating dtype.
            generator: source of the training forward's randomness, on the features' device; None for torch's own.
        """
        if self.training and torch.compiler.is_exporting():
            raise ValueError("in train mode no graph can be exported; call model.eval() first")
        features = as_tensor(features, "features", device_for(self, features))
        _check_vectors(features, self.config.feature_dim, "features")
        with torch.autocast(features.device.type, enabled=False):
            if self.training:
                return self.training_forward(features.float(), generator)
            latents = self.to_latents(features)
            if not self.has_codes:
                latents = latents.float()
                return QuantizerOutput(latents=latents, codes=None, loss=latents.new_zeros(()), metrics={})
            quantized, codes = self.nearest(latents)
            metrics = {"quantizer/quantization_error_rms": rms_length(quantized - latents.float())}
            return QuantizerOutput(latents=quantized, codes=codes, loss=quantized.new_zeros(()), metrics=metrics)

    @_onloaded
    def encode(self, latents: Tensor) -> Tensor:
        """The code of each latent: [...] or [..., G] int64 in 0..K-1 from [..., d]."""
        self.check_codes()
        latents = as_tensor(latents, "latents", device_for(self, latents))
        _check_vectors(latents, self.latent_dim, "latents")
        return self._nearest_codes(latents)

    @_onloaded
    def nearest(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`decode(encode(latents))` and the codes, for latents [..., d] that were checked before."""
        self.check_codes()
        codes = self._nearest_codes(latents)
        return self.lookup(codes), codes

    def _nearest_codes(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            return self.nearest_codes(latents.float() if is_tracing() else without_bad_values(latents.float()))

    @_onloaded
    def decode(self, codes: Tensor) -> Tensor:
        """The latent of each code: [..., d] float32 from [...] or [..., G] integers."""
        self.check_codes()
        return self.lookup(self._checked_codes(codes))

    def _checked_codes(self, codes: Tensor) -> Tensor:
        """The codes as int64, checked; a TypeError unless they are integers, a ValueError unless they are in range."""
        codes = as_codes(codes, device_for(self, codes))
        groups = self.code_groups
        if groups > 1 and (codes.ndim < 1 or codes.shape[-1] != groups):
            raise ValueError(f"codes must be [..., {groups}], one per dimension, got shape {tuple(codes.shape)}")
        if not is_tracing() and codes.numel():
            low, high = torch.stack(torch.aminmax(codes)).tolist()
            if low < 0 or high >= self.codebook_size:
                raise ValueError(
                    f"codes must lie in 0..{self.codebook_size - 1}, got {low}..{high}; "
                    "were they made with another tokenizer, or with special tokens added?"
                )
        return codes

    def to_latents(self, features: Tensor) -> Tensor:
        """Continuous latents [..., d] from features [..., F], in the same dtype: by default the features themselves."""
        return features

    @abstractmethod
    def training_forward(self, features: Tensor, generator: torch.Generator | None) -> QuantizerOutput:
        """What training does in place of quantization; features are [..., F] float32.

        They are finite, except within `deferred_checks`. There, values that are not finite must not raise an error and
        must not enter the quantizer's state.
        """

    @abstractmethod
    def nearest_codes(self, latents: Tensor) -> Tensor:
        """[...] or [..., G] int64 from [..., d] float32, finite."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """[..., d] float32 from [...] or [..., G] int64 in range."""

    def check_codes(self) -> None:
        """Raise CodebookNotFittedError if no codebook has been fitted, or NoCodesError if the kind has no codes."""
        if not self.config.fitted:
            raise CodebookNotFittedError(
                f"this {self.config.kind!r} quantizer has no fitted codebook, so it has no codes yet; call "
                "vpvae_hf.fit_codebook(model, batches) once after training, then save the model. In a model of your "
                "own call quantizer.set_codebook(vpvae_hf.codebook.fit_kmeans(latents, K).centroids). Without codes, a "
                "tokenizer's decode(latents, force_not_quantize=True) works"
            )
        fitted = self.fitted_tensors
        if fitted and not is_tracing() and not self._holds_fit(fitted[0]):
            raise CodebookNotFittedError(
                f"the settings say that the {self.config.fits} should hold fitted values, but there are only zeros, as "
                "in a model made from another model's config; load that model with from_pretrained, or "
                "call vpvae_hf.fit_codebook"
            )

    def _load_from_state_dict(self, state_dict, prefix, *others):
        # `load_state_dict(assign=True)` takes tensors as they are; half precision would change codes.
        for name, tensor in state_dict.items():
            if name.startswith(prefix) and isinstance(tensor, Tensor) and tensor.is_floating_point():
                state_dict[name] = tensor.float()
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _apply(self, fn, recurse=True):
        # Casting the module moves it but keeps its precision: half precision would change codes.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)


class HoldsValues:
    """Whether a tensor holds anything but zeros. It looks again only after the tensor was written to or replaced."""

    def __init__(self):
        self._seen: tuple[int, int] | None = None

    def __call__(self, tensor: Tensor) -> bool:
        if tensor.is_inference():  # has no counter of writes
            return bool(tensor.any())
        state = tensor.data_ptr(), tensor._version
        # A negative answer is not cached, since it leads to an error anyway.
        if state != self._seen and tensor.any():
            self._seen = state
        return state == self._seen


def _check_vectors(vectors: Tensor, dim: int, name: str) -> None:
    if vectors.ndim < 1 or vectors.shape[-1] != dim:
        raise ValueError(f"{name} must be [..., {dim}] (latent_dim last), got shape {tuple(vectors.shape)}")
    if not vectors.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {vectors.dtype}; use decode() for codes")
    if vectors.numel():
        remedy = "; in training lower the learning rate or clip gradients, otherwise check the input and the weights"
        require_finite(vectors, f"values of the {name}", remedy)
