"""Images for training and evaluation."""

from .crops import center_crops, random_crops, to_pixel_values
from .in_memory import load_images
from .photographs import load_photographs
from .source import ImageSource, check_readable, open_images
from .stream import ImageLoader, ImageStream

__all__ = [
    "ImageLoader",
    "ImageSource",
    "ImageStream",
    "center_crops",
    "check_readable",
    "load_images",
    "load_photographs",
    "open_images",
    "random_crops",
    "to_pixel_values",
]
