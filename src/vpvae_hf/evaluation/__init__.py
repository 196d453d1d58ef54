"""Metrics, as plain functions of tensors."""

from .code_usage import code_usage
from .image import image_quality
from .reconstruction import ReconstructionQuality, evaluate_reconstruction

__all__ = ["ReconstructionQuality", "code_usage", "evaluate_reconstruction", "image_quality"]
