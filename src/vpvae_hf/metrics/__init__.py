"""Metrics as plain functions of tensors, and pictures of what they measure."""

from vpvae_hf.metric_labels import METRIC_LABELS, MetricLabel, describe_metrics, metric_label

from .audio import audio_quality, check_audio_packages, log_mel_spectrogram, mel_distance, pesq_score, stoi_score
from .codes import code_usage
from .frechet import feature_moments, frechet_distance
from .image import image_quality, lpips_distance
from .loading import load_metric
from .pictures import image_grid, spectrogram_grid
from .reconstruction import (
    FeatureFn,
    MetricFn,
    Reconstruction,
    ReconstructionQuality,
    evaluate_reconstruction,
    reconstruct,
)

__all__ = [
    "METRIC_LABELS",
    "FeatureFn",
    "MetricFn",
    "MetricLabel",
    "Reconstruction",
    "ReconstructionQuality",
    "audio_quality",
    "check_audio_packages",
    "code_usage",
    "describe_metrics",
    "evaluate_reconstruction",
    "feature_moments",
    "frechet_distance",
    "image_grid",
    "image_quality",
    "load_metric",
    "log_mel_spectrogram",
    "lpips_distance",
    "mel_distance",
    "metric_label",
    "pesq_score",
    "reconstruct",
    "spectrogram_grid",
    "stoi_score",
]
