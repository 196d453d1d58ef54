"""Images for training and evaluation."""

from .code_files import CodeFiles
from .code_manifest import claim_folder, tokenizer_hash, write_totals
from .crops import center_crops, random_crops, to_pixel_values
from .in_memory import load_images
from .photographs import load_photographs
from .source import ImageSource, check_readable, open_images
from .stream import ImageLoader, ImageStream

__all__ = [
    "CodeFiles",
    "ImageLoader",
    "ImageSource",
    "ImageStream",
    "center_crops",
    "check_readable",
    "claim_folder",
    "load_images",
    "load_photographs",
    "open_images",
    "random_crops",
    "to_pixel_values",
    "tokenizer_hash",
    "write_totals",
]
