"""Signals that speech metrics take for speech, and a small audio tokenizer to measure."""

import math

import torch
from torch import Tensor, nn

from vpvae_hf.models.tokenizer import Tokenizer
from vpvae_hf.quantizers import build_quantizer

RATE = 16_000


def speech(seconds: float, pitch: float = 120, seed: int = 0) -> Tensor:
    """[T]: harmonics of a wavering pitch, under formants that move and syllables that swell, with pauses."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * RATE)) / RATE
    wander = torch.randn(4, generator=generator)
    phase = 2 * math.pi * (pitch * time + 2 * torch.sin(2 * math.pi * 3 * time + wander[0]))
    formants = [
        centre * (1 + 0.2 * torch.sin(2 * math.pi * rate * time + start))
        for centre, rate, start in zip((500, 1500, 2500), (1.3, 1.7, 2.3), wander[1:].tolist(), strict=True)
    ]
    wave = torch.zeros_like(time)
    for harmonic in range(1, 40):
        strength = sum(torch.exp(-(((harmonic * pitch - formant) / 250) ** 2)) for formant in formants)
        wave += (0.05 + strength) / harmonic**0.5 * torch.sin(harmonic * phase)
    syllables = torch.sin(2 * math.pi * 2 * time).clamp_min(0) ** 0.5
    wave = wave * syllables + 1e-4 * torch.randn(len(time), generator=generator)
    return 0.3 * wave / wave.abs().max()


def noisy(original: Tensor, deviation: float | Tensor) -> Tensor:
    return original + deviation * torch.randn(original.shape, generator=torch.Generator().manual_seed(1))


class BlockCodec(Tokenizer, nn.Module):
    """In the place of an audio tokenizer: a code for the mean and the slope of every eight samples."""

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
    """In the place of LPIPS' network, which has tests of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, made: Tensor, original: Tensor) -> Tensor:
        return self.weight * (made - original).abs().mean(dim=(1, 2, 3), keepdim=True)
