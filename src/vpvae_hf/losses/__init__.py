"""Losses by name, and a discriminator with its losses."""

from .adversarial import PatchDiscriminator, discriminator_loss, generator_loss
from .perceptual import lpips_per_image
from .reconstruction import RECONSTRUCTION_LOSSES
from .registry import build_losses

__all__ = [
    "RECONSTRUCTION_LOSSES",
    "PatchDiscriminator",
    "build_losses",
    "discriminator_loss",
    "generator_loss",
    "lpips_per_image",
]
