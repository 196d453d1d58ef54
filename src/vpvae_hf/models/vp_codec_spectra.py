"""Fourier transforms between the audio tokenizer's samples and frames, in place of convolutions on samples.

The decoder predicts magnitudes and phases as Vocos does: Siuzdak 2023, arXiv 2306.00814. All layers but the two
transforms work at the rate of the codes. The transforms are convolutions that start as Fourier transforms and are
trained; windows are four hops long.

Shapes: B clips of a batch, T samples of a waveform, N = T / hop frames, F = 2 hop + 1 frequencies, C channels.
"""

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_vp_codec import VPCodecConfig
from .vp_codec_layers import HOPS_PER_WINDOW, Padding

# Magnitudes; that of a sine at full scale is 1. The least one is below the rounding error of 16 bits.
_LEAST, _QUIET, _LOUDEST = 1e-6, 5e-4, 4.0
_LEVEL, _RANGE = 7.0, 4.0  # to normalize logarithms of magnitudes, which are then about -1.5 to 2


class FourierAnalysis(nn.Conv1d):
    """[B, 2 F, N], real and then imaginary parts, of waveforms [B, 1, T], times a quarter of the window's length.

    With this factor its weights are about 1, and steps of Adam are small compared with them.
    """

    def start(self) -> None:
        """Set the weights to the Fourier transform of windows."""
        cosines, sines, window = _waves(self.kernel_size[0])
        weight = torch.cat([cosines, -sines]) * window
        init.copy_(self.weight, weight[:, None].to(self.weight))
        init.zeros_(self.bias)


class FourierSynthesis(nn.ConvTranspose1d):
    """Waveforms [B, 1, T] from their analysis [B, 2 F, N]."""

    def start(self) -> None:
        """Set the weights to the inverse Fourier transform, windowed and added up."""
        cosines, sines, window = _waves(self.kernel_size[0])
        share = torch.full((len(cosines), 1), 2.0, dtype=torch.float64)
        share[0] = share[-1] = 1.0
        overlap = window.square().view(HOPS_PER_WINDOW, -1).sum(dim=0).repeat(HOPS_PER_WINDOW)
        weight = torch.cat([cosines * share, -sines * share]) * window / (4 * overlap)
        init.copy_(self.weight, weight[:, None].to(self.weight))
        init.zeros_(self.bias)


class SpectralEncoder(nn.Module):
    """Waveform [B, 1, T] to features [B, hidden_size, N]."""

    def __init__(self, config: VPCodecConfig):
        super().__init__()
        hop, frequencies = config.hop_length, _frequencies(config)
        self.reach, self.stride = (HOPS_PER_WINDOW - 1) * hop, hop
        padding = 0 if config.causal else (self.reach + 1) // 2
        self.analysis = FourierAnalysis(1, 2 * frequencies, HOPS_PER_WINDOW * hop, hop, padding)
        self.conv = nn.Conv1d(3 * frequencies, config.hidden_size, 1)

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        spectrum = padding.convolve(self.analysis, x, self.reach, self.stride) / self.stride
        real, imaginary = spectrum.chunk(2, dim=1)
        magnitude = (real.square() + imaginary.square() + _LEAST**2).sqrt()
        root = magnitude.sqrt()
        return self.conv(torch.cat([(magnitude.log() + _LEVEL) / _RANGE, real / root, imaginary / root], dim=1))


class SpectralDecoder(nn.Module):
    """Features [B, hidden_size, N] to a waveform [B, 1, T] within [-1, 1]."""

    def __init__(self, config: VPCodecConfig):
        super().__init__()
        self.stride = config.hop_length
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        frequencies = _frequencies(config)
        self.conv = nn.Conv1d(config.hidden_size, 2 * frequencies, 1)
        self.synthesis = FourierSynthesis(2 * frequencies, 1, HOPS_PER_WINDOW * self.stride, self.stride)

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        features = self.conv(self.norm(x.mT).mT)
        magnitude, phase = features.chunk(2, dim=1)
        magnitude = (magnitude + math.log(_QUIET)).clamp(max=math.log(_LOUDEST)).exp()
        spectrum = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=1)
        return padding.upsample(self.synthesis, spectrum, self.stride, HOPS_PER_WINDOW).clamp(-1, 1)


def _frequencies(config: VPCodecConfig) -> int:
    """F, the number of frequencies."""
    return HOPS_PER_WINDOW * config.hop_length // 2 + 1


def _waves(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines and sines [F, length] of all frequencies, and a Hann window [length], in float64."""
    angles = 2 * math.pi / length * torch.outer(torch.arange(length // 2 + 1), torch.arange(length)).double()
    return angles.cos(), angles.sin(), torch.hann_window(length, dtype=torch.float64)
