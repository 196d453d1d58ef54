"""Losses of images and waveforms by name, and a discriminator with its losses."""

from .adversarial import PatchDiscriminator, discriminator_loss, generator_loss
from .features import EFFICIENTNET, feature_distance_per_image, pooled_features, require_feature_images
from .perceptual import lpips_per_image, require_lpips_channels
from .refinement import ItemLoss, item_losses
from .registry import RECONSTRUCTION_LOSSES, Loaded, Loss, audio_losses, build_losses, image_losses
from .spectral import multi_resolution_stft_loss

__all__ = [
    "EFFICIENTNET",
    "RECONSTRUCTION_LOSSES",
    "ItemLoss",
    "Loaded",
    "Loss",
    "PatchDiscriminator",
    "audio_losses",
    "build_losses",
    "discriminator_loss",
    "feature_distance_per_image",
    "generator_loss",
    "image_losses",
    "item_losses",
    "lpips_per_image",
    "multi_resolution_stft_loss",
    "pooled_features",
    "require_feature_images",
    "require_lpips_channels",
]
