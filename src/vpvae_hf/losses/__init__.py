"""Losses of images and waveforms by name, and a discriminator with its losses."""

from .adversarial import PatchDiscriminator, discriminator_loss, generator_loss
from .perceptual import lpips_per_image
from .reconstruction import RECONSTRUCTION_LOSSES
from .registry import Loss, build_audio_losses, build_image_losses
from .spectral import multi_resolution_stft_loss

__all__ = [
    "RECONSTRUCTION_LOSSES",
    "Loss",
    "PatchDiscriminator",
    "build_audio_losses",
    "build_image_losses",
    "discriminator_loss",
    "generator_loss",
    "lpips_per_image",
    "multi_resolution_stft_loss",
]
