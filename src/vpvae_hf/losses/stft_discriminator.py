"""A discriminator of audio by its spectrograms.

B items of T samples; a spectrogram of one has L frames of F frequencies.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.nn.utils.parametrizations import weight_norm

from .spectral import check_waveforms

# Window lengths in samples; the hop is a quarter of one.
WINDOWS = (2048, 1024, 512, 256, 128)
# Dilations in time; each of these layers halves the number of frequencies.
_DILATIONS = (1, 2, 4)


class STFTDiscriminator(nn.Module):
    """Tells real audio from reconstructed: the multi-scale STFT discriminator of EnCodec.

    Défossez et al. 2022, arXiv 2210.13438, section 3.4: five networks of the same architecture, one for each window
    length, see the real and the imaginary parts of the complex spectrogram, so phase counts. Kernels are 9 wide in
    frequency (8 in the paper), so that they are centred.

    Args:
        base_channels: width of every layer.
    """

    def __init__(self, base_channels: int = 32):
        super().__init__()
        if base_channels < 1:
            raise ValueError(f"base_channels is {base_channels}: give at least 1")
        self.minimum_length = 1 + max(WINDOWS) // 2  # reflection pads half a window on both sides
        self.scales = nn.ModuleList(_Scale(window, base_channels) for window in WINDOWS)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Logits [B, n] of all places in all spectrograms, about T / 4 per spectrogram; higher if they sound real.

        Args:
            waveforms: [B, 1, T] in [-1, 1], at least 1025 samples, or a ValueError is raised.
        """
        return self.judge(waveforms)[0]

    def judge(self, waveforms: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits, and the features [B, base_channels, L, frequencies] of each network's layers; args as above."""
        check_waveforms("the STFT discriminator", waveforms, waveforms)
        if waveforms.shape[-1] < self.minimum_length:
            raise ValueError(
                f"the STFT discriminator needs at least {self.minimum_length} samples, got {waveforms.shape[-1]}: use "
                "longer segments, or do without it"
            )
        judged = [scale(waveforms) for scale in self.scales]
        return torch.cat([logits for logits, _ in judged], dim=1), [each for _, maps in judged for each in maps]


class _Scale(nn.Module):
    """[B, 1, T] to logits [B, L * F / 8] and features, by a spectrogram of one window length."""

    def __init__(self, window: int, channels: int):
        super().__init__()
        self.window = window
        self.layers = nn.ModuleList([_convolution(2, channels, (3, 9))])
        self.layers += [_convolution(channels, channels, (3, 9), (1, 2), dilation) for dilation in _DILATIONS]
        self.layers.append(_convolution(channels, channels, (3, 3)))
        self.last = _convolution(channels, 1, (3, 3))

    def forward(self, waveforms: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast(waveforms.device.type, enabled=False):  # half precision has no Fourier transform
            window = torch.hann_window(self.window, dtype=torch.float32, device=waveforms.device)
            spectrum = torch.stft(
                waveforms[:, 0].float(),
                self.window,
                self.window // 4,
                window=window,
                normalized=True,
                return_complex=True,
            )
            x = torch.view_as_real(spectrum).permute(0, 3, 2, 1)
        features = []
        for layer in self.layers:
            x = leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.last(x).flatten(1), features


def _convolution(
    inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1), dilation: int = 1
) -> nn.Module:
    """Over time and frequency, with weight norm (Salimans & Kingma 2016, arXiv 1602.07868)."""
    padding = (kernel[0] // 2 * dilation, kernel[1] // 2)
    return weight_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding, (dilation, 1)))
