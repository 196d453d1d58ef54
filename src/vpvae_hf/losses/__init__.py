"""Losses of images and waveforms by name, and a discriminator with its losses."""

from .adversarial import PatchDiscriminator, discriminator_loss, generator_loss
from .perceptual import lpips_per_image, require_lpips_channels
from .refinement import ItemLoss, item_losses
from .registry import IMAGE_LOSSES, RECONSTRUCTION_LOSSES, Loaded, Loss, audio_losses, build_losses
from .spectral import multi_resolution_stft_loss

__all__ = [
    "IMAGE_LOSSES",
    "RECONSTRUCTION_LOSSES",
    "ItemLoss",
    "Loaded",
    "Loss",
    "PatchDiscriminator",
    "audio_losses",
    "build_losses",
    "discriminator_loss",
    "generator_loss",
    "item_losses",
    "lpips_per_image",
    "multi_resolution_stft_loss",
    "require_lpips_channels",
]
