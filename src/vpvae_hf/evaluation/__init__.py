"""Metrics, as plain functions of tensors, and pictures of what they are of."""

from .audio import audio_quality, check_audio_packages, log_mel_spectrogram, mel_distance, pesq_score, stoi_score
from .code_usage import code_usage
from .grid import image_grid
from .image import image_quality, lpips_distance
from .metric_modules import load_metric
from .reconstruction import (
    Quality,
    Reconstruction,
    ReconstructionQuality,
    evaluate_reconstruction,
    reconstruct,
)
from .spectrogram import spectrogram_grid

__all__ = [
    "Quality",
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
