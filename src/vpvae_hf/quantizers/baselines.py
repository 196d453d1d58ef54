"""What the baselines share: the library vector-quantize-pytorch, and (VQ and SimVQ) a codebook learned in training."""

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpvae_hf.settings import installed_with, require, require_integer, require_weight
from vpvae_hf.tensors import kept_for_training

from .base import QuantizerOutput
from .codebook import CodebookQuantizer, CodebookQuantizerConfig
from .normalization import rms_length


def library():
    """The module `vector_quantize_pytorch`; an ImportError says how to install it."""
    with installed_with("'vpvae_hf[baselines]'"):
        import vector_quantize_pytorch
    return vector_quantize_pytorch


@dataclass(frozen=True, kw_only=True)
class LearnedCodebookConfig(CodebookQuantizerConfig):
    """Settings that quantizers with a learned codebook share.

    Attributes:
        commitment_weight: weight of the loss that draws latents to their codes, relative to the loss that draws codes
            to latents; beta of arXiv 1711.00937.
        rotation_trick: pass gradients by rotation (arXiv 2410.06424) in place of straight-through.
        learned_size: how many codes the learned codebook has, if another codebook, fitted after training, decides the
            codes; None if the learned one decides them. `set_codebook` and `fit_codebook` set it.
    """

    commitment_weight: float = 0.25
    rotation_trick: bool = False
    learned_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        require_weight("commitment_weight", self.commitment_weight)
        require(isinstance(self.rotation_trick, bool), "rotation_trick", self.rotation_trick, "true or false")
        if self.learned_size is not None:
            require_integer("learned_size", self.learned_size, 2)

    @property
    def trained_size(self) -> int:
        """How many codes are learned in training."""
        return self.learned_size or self.codebook_size

    def without_fit(self) -> "LearnedCodebookConfig":
        return dataclasses.replace(super().without_fit(), codebook_size=self.trained_size, learned_size=None)


class LearnedCodebook(CodebookQuantizer):
    """A codebook that the library trains.

    If another codebook is fitted after training, it decides the codes. Further training uses the learned one.

    Buffers:
        fitted_codebook: [K, d] float32; None if the learned codebook decides the codes.
    """

    config: LearnedCodebookConfig
    library: nn.Module
    fitted_codebook: Tensor | None

    def __init__(self, config: LearnedCodebookConfig):
        super().__init__(config)
        size = config.codebook_size, config.latent_dim
        fitted = None if config.learned_size is None else torch.zeros(size, dtype=torch.float32)
        self.register_buffer("fitted_codebook", fitted)

    @property
    def codebook(self) -> Tensor:
        """[K, d], the codebook that decides the codes; a learned one passes gradients on."""
        return self.library.codebook if self.fitted_codebook is None else self.fitted_codebook

    @property
    def fitted_tensors(self) -> tuple[Tensor, ...]:
        return () if self.fitted_codebook is None else (self.fitted_codebook, *self._fitted_beside)

    def drop_fit(self) -> None:
        self.fitted_codebook = None
        super().drop_fit()

    @torch.no_grad()
    def learn_from_fit(self) -> None:
        """Copy the fitted codebook into the learned one; a ValueError if there is none, or if it has another K."""
        fitted, size = self.fitted_codebook, self.config.trained_size
        if fitted is None or len(fitted) != size:
            there = "none is fitted" if fitted is None else f"the fitted one has {len(fitted)}"
            raise ValueError(f"training learns a codebook of {size} codes, but {there}; fit one of {size} first")
        self._start_from(fitted)

    @abstractmethod
    def _start_from(self, codebook: Tensor) -> None:
        """Make the learned codebook equal to a codebook [K, d]."""

    @property
    def is_parameter(self) -> bool:
        """Whether the codebook itself is a parameter, neither a buffer nor computed from other tensors."""
        return any(weight.data_ptr() == self.codebook.data_ptr() for weight in self.parameters())

    def _install(self, codebook: Tensor) -> None:
        sizes = {"codebook_size": len(codebook), "learned_size": self.config.trained_size}
        self.config = dataclasses.replace(self.config, **sizes, other_codebook_sizes=())
        self.fitted_codebook = codebook

    def _load_from_state_dict(self, state_dict, prefix, *others):
        """Take over a fitted codebook of any K, or drop the present one if the state dict has none."""
        loaded = state_dict.get(f"{prefix}fitted_codebook")
        if loaded is None and any(key.startswith(f"{prefix}library.") for key in state_dict):
            self.drop_fit()
        elif loaded is not None and loaded.ndim == 2 and loaded.shape[1] == self.latent_dim:
            with kept_for_training():
                self._install(torch.zeros(loaded.shape, dtype=torch.float32, device=self.codebook.device))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _output(self, features: Tensor, latents: Tensor, codes: Tensor, loss: Tensor) -> QuantizerOutput:
        """The output of a training forward, from latents [N, d] and codes [N] in one batch.

        It has no codes if a fitted codebook decides them, since the learned codebook's codes have another meaning.
        """
        latents = latents.view(features.shape)
        codes = codes.view(features.shape[:-1]) if self.fitted_codebook is None else None
        moved = rms_length(latents - features)
        metrics = {"quantizer/displacement_rms": moved, "quantizer/quantization_error_rms": moved}
        return QuantizerOutput(latents=latents, codes=codes, loss=loss, metrics=metrics)
