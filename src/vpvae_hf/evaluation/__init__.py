"""Metrics, as plain functions of tensors."""

from .code_usage import code_usage
from .grid import image_grid
from .image import image_quality, lpips_distance
from .reconstruction import (
    Reconstruction,
    ReconstructionQuality,
    evaluate_reconstruction,
    reconstruct,
)

__all__ = [
    "Reconstruction",
    "ReconstructionQuality",
    "code_usage",
    "evaluate_reconstruction",
    "image_grid",
    "image_quality",
    "lpips_distance",
    "reconstruct",
]
