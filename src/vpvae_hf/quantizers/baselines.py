"""What the baselines VQ, SimVQ and FSQ share: vector-quantize-pytorch, and a codebook that is learned in training."""

from dataclasses import dataclass

from torch import Tensor, nn

from vpvae_hf.neighbors import nearest_in_graph, nearest_point
from vpvae_hf.settings import installed_with, require, require_weight
from vpvae_hf.tensors import is_tracing

from .base import Quantizer, QuantizerConfig, QuantizerOutput
from .normalization import rms_length


def library():
    """The module `vector_quantize_pytorch`; an ImportError says how to install it."""
    with installed_with("'vpvae_hf[baselines]'"):
        import vector_quantize_pytorch
    return vector_quantize_pytorch


@dataclass(frozen=True, kw_only=True)
class LearnedCodebookConfig(QuantizerConfig):
    """Settings that quantizers with a learned codebook share.

    Attributes:
        commitment_weight: weight of the loss that draws latents to their codes, relative to the loss that draws codes
            to latents; beta of arXiv 1711.00937.
        rotation_trick: gradients pass by rotation (arXiv 2410.06424), not straight through.
    """

    commitment_weight: float = 0.25
    rotation_trick: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_weight("commitment_weight", self.commitment_weight)
        require(isinstance(self.rotation_trick, bool), "rotation_trick", self.rotation_trick, "true or false")


class LearnedCodebook(Quantizer):
    """A codebook that the library trains; the code of a latent is the nearest by Euclidean distance."""

    library: nn.Module
    codebook = property(lambda self: self.library.codebook, doc="[K, d], with its gradient.")

    @property
    def is_parameter(self) -> bool:
        """Whether the codebook is a parameter itself, not a buffer or made of one."""
        return any(weight.data_ptr() == self.codebook.data_ptr() for weight in self.parameters())

    def nearest_codes(self, latents: Tensor) -> Tensor:
        flat, codebook = latents.detach().reshape(-1, self.latent_dim), self.codebook.detach()
        codes = nearest_in_graph(flat, codebook) if is_tracing() else nearest_point(flat, codebook)[1]
        return codes.view(latents.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        return self.codebook[codes]

    @staticmethod
    def _output(features: Tensor, latents: Tensor, codes: Tensor, loss: Tensor) -> QuantizerOutput:
        """The output of a training forward, from latents [N, d] and codes [N] in one batch."""
        latents, codes = latents.view(features.shape), codes.view(features.shape[:-1])
        moved = rms_length(latents - features)
        metrics = {"quantizer/displacement_rms": moved, "quantizer/quantization_error_rms": moved}
        return QuantizerOutput(latents=latents, codes=codes, loss=loss, metrics=metrics)
