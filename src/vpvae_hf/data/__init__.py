"""Images for training and evaluation."""

from .crops import center_crops, random_crops, to_pixel_values
from .datasets import load_images
from .photographs import load_photographs

__all__ = ["center_crops", "load_images", "load_photographs", "random_crops", "to_pixel_values"]
