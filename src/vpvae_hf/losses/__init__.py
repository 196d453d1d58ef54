"""Losses of images and waveforms by name, and discriminators with their losses."""

from .adversarial import discriminator_loss, feature_matching_loss, generator_loss
from .features import EFFICIENTNET, feature_distance_per_image, pooled_features, require_feature_images
from .patch_discriminator import PatchDiscriminator
from .perceptual import lpips_per_image, require_lpips_channels
from .refinement import ItemLoss, item_losses
from .registry import RECONSTRUCTION_LOSSES, Loaded, Loss, audio_losses, build_losses, image_losses
from .spectral import multi_resolution_stft_loss
from .stft_discriminator import STFTDiscriminator

__all__ = [
    "EFFICIENTNET",
    "RECONSTRUCTION_LOSSES",
    "ItemLoss",
    "Loaded",
    "Loss",
    "PatchDiscriminator",
    "STFTDiscriminator",
    "audio_losses",
    "build_losses",
    "discriminator_loss",
    "feature_distance_per_image",
    "feature_matching_loss",
    "generator_loss",
    "image_losses",
    "item_losses",
    "lpips_per_image",
    "multi_resolution_stft_loss",
    "pooled_features",
    "require_feature_images",
    "require_lpips_channels",
]
