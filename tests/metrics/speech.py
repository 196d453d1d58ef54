"""Signals that speech metrics take for speech, and a small audio tokenizer to measure."""

import torch
from torch import Tensor, nn

from vpvae_hf.data import synthetic_voice as speech
from vpvae_hf.models.tokenizer import Tokenizer
from vpvae_hf.quantizers import build_quantizer

__all__ = ["RATE", "BlockCodec", "MeanDifference", "noisy", "speech"]

RATE = 16_000


def noisy(original: Tensor, deviation: float | Tensor) -> Tensor:
    return original + deviation * torch.randn(original.shape, generator=torch.Generator().manual_seed(1))


class BlockCodec(Tokenizer, nn.Module):
    """Stands in for an audio tokenizer: a code for the mean and the slope of every eight samples."""

    HOP = 8

    def __init__(self, codebook: Tensor | None = None):
        super().__init__()
        self.basis = nn.Parameter(torch.stack([torch.ones(self.HOP), torch.linspace(-1, 1, self.HOP)], dim=1))
        size = 64 if codebook is None else len(codebook)
        self.quantize = build_quantizer({"kind": "vp", "codebook_size": size, "latent_dim": 2})
        if codebook is not None:
            self.quantize.set_codebook(codebook)

    def latent_vectors(self, inputs: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """[B, 1, T] -> [B, ceil(T / 8), 2]."""
        blocks = nn.functional.pad(inputs[:, 0], (0, -inputs.shape[-1] % self.HOP)).unflatten(1, (-1, self.HOP))
        return blocks @ torch.linalg.pinv(self.basis).T

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """[B, N, 2] -> [B, 1, 8 N]."""
        return (vectors @ self.basis.T).flatten(1)[:, None]

    def detokenize(self, codes: Tensor) -> Tensor:
        return self.decode_vectors(self.quantize.decode(codes))

    def _encoder_parts(self):
        return ()

    def _set_config(self, **settings):
        pass


class MeanDifference(nn.Module):
    """Stands in for LPIPS' network, which has tests of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, made: Tensor, original: Tensor) -> Tensor:
        return self.weight * (made - original).abs().mean(dim=(1, 2, 3), keepdim=True)
