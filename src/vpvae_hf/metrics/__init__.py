"""Metrics, as plain functions of tensors, and pictures of what they are of."""

from .audio import audio_quality, check_audio_packages, log_mel_spectrogram, mel_distance, pesq_score, stoi_score
from .codes import code_usage
from .evaluate_modules import load_metric
from .image import image_quality, lpips_distance
from .pictures import image_grid, spectrogram_grid
from .reconstruction import (
    MetricFn,
    Reconstruction,
    ReconstructionQuality,
    evaluate_reconstruction,
    reconstruct,
)

__all__ = [
    "MetricFn",
    "Reconstruction",
    "ReconstructionQuality",
    "audio_quality",
    "check_audio_packages",
    "code_usage",
    "evaluate_reconstruction",
    "image_grid",
    "image_quality",
    "load_metric",
    "log_mel_spectrogram",
    "lpips_distance",
    "mel_distance",
    "pesq_score",
    "reconstruct",
    "spectrogram_grid",
    "stoi_score",
]
