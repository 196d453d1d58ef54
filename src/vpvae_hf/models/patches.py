"""diffusers' encoder and decoder on patches of pixels, and a linear transform that is added to them.

Shapes: B images of C channels and H x W pixels, p the side of a patch, f the downsampling factor, h x w = H/f x W/f, F
channels of encoder or decoder next to the bottleneck, d latent dimensions.
"""

from functools import reduce
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from scipy.fft import dct
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

# Correlation of neighbouring pixels, and of the channels of a pixel, in photographs.
_PIXEL_CORRELATION, _CHANNEL_CORRELATION = 0.97, 0.9
_PIXEL_VARIANCE = 0.25  # in [-1, 1]


class PatchEncoder(Encoder):
    """[B, F, h, w] of images [B, C, H, W]: the network on patches, plus a projection of each square of f x f pixels.

    Args:
        patch_size: p.
        factor: f for the linear projection, None for none.
        settings: as for diffusers' `Encoder`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, patch_size: int, factor: int | None, **settings: Any):
        super().__init__(in_channels * patch_size**2, out_channels, double_z=False, **settings)
        self.patch_size = patch_size
        self.shortcut = None if factor is None else nn.Conv2d(in_channels, out_channels, factor, factor, bias=False)

    def forward(self, sample: Tensor) -> Tensor:
        features = super().forward(pixel_unshuffle(sample, self.patch_size))
        return features if self.shortcut is None else features + self.shortcut(sample)


class PatchDecoder(Decoder):
    """[B, C, H, W] of features [B, F, h, w]: the counterpart of `PatchEncoder`, with its arguments."""

    def __init__(self, in_channels: int, out_channels: int, *, patch_size: int, factor: int | None, **settings: Any):
        super().__init__(in_channels, out_channels * patch_size**2, **settings)
        self.patch_size = patch_size
        self.shortcut = None
        if factor is not None:
            self.shortcut = nn.ConvTranspose2d(in_channels, out_channels, factor, factor, bias=False)

    def forward(self, sample: Tensor, latent_embeds: Tensor | None = None) -> Tensor:
        images = pixel_shuffle(super().forward(sample, latent_embeds), self.patch_size)
        return images if self.shortcut is None else images + self.shortcut(sample)


@torch.no_grad()
def start_from_dct(
    encoder: PatchEncoder, quant_conv: nn.Conv2d, post_quant_conv: nn.Conv2d, decoder: PatchDecoder
) -> None:
    """Start with the discrete cosine transform: latents are its first coefficients, from which images are restored.

    The coefficients of each square of f x f pixels and their channels are ordered by their variance in photographs,
    which are modelled as a first-order autoregressive process, and scaled to a variance of about 1. The outputs of both
    networks start at zero, so that training improves a transform instead of finding one. The direct path from pixels to
    latents follows the residual autoencoding of Chen et al. 2024, arXiv 2410.10733, section 3.2.
    """
    basis, deviations = _cosines(*encoder.shortcut.weight.shape[1:3])
    for shortcut in (encoder.shortcut, decoder.shortcut):
        count = min(len(basis), len(shortcut.weight))
        shortcut.weight.zero_()[:count] = basis[:count]
    count = min(len(basis), *quant_conv.weight.shape[:2], *post_quant_conv.weight.shape[:2])
    for projection, scale in ((quant_conv, 1 / deviations), (post_quant_conv, deviations)):
        projection.weight.zero_()[range(count), range(count), 0, 0] = scale[:count]
        projection.bias.zero_()
    for last in (encoder.conv_out, decoder.conv_out):
        last.weight.zero_()
        last.bias.zero_()


def _cosines(channels: int, factor: int) -> tuple[Tensor, Tensor]:
    """The orthonormal functions [C f f, C, f, f] of the transform, and the deviations [C f f] of their coefficients."""
    axes = [(channels, _CHANNEL_CORRELATION), (factor, _PIXEL_CORRELATION), (factor, _PIXEL_CORRELATION)]
    transforms = [dct(np.eye(length), axis=0, norm="ortho") for length, _ in axes]
    covariances = [
        correlation ** np.abs(np.subtract.outer(np.arange(length), np.arange(length))) for length, correlation in axes
    ]
    variances = [np.diag(t @ covariance @ t.T) for t, covariance in zip(transforms, covariances, strict=True)]
    variance = _PIXEL_VARIANCE * reduce(np.multiply.outer, variances).ravel()
    order = np.argsort(-variance, kind="stable")
    basis = np.einsum("ac,ud,ve->auvcde", *transforms).reshape(len(variance), channels, factor, factor)
    return torch.from_numpy(basis[order]).float(), torch.from_numpy(np.sqrt(variance[order])).float()
