"""Image files to arrays."""

import io
from collections.abc import Mapping

import fsspec
import numpy as np
from PIL import Image, ImageOps

from .files import UnreadableFileError, name_of


def decode_image(file: Mapping | None) -> np.ndarray:
    """[H, W, 3] uint8, upright, from "bytes" or else "path".

    Raises:
        UnreadableFileError: it is no readable image.
    """
    if file is None:
        raise UnreadableFileError("there is no file")
    try:
        with _opened(file) as data, Image.open(data) as image:
            return np.asarray(_as_rgb(ImageOps.exif_transpose(image)))
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableFileError(f"{name_of(file)}: {error}") from error


def _opened(file: Mapping):
    # A stream of image files on the hub gives their addresses only.
    return io.BytesIO(file["bytes"]) if file["bytes"] is not None else fsspec.open(file["path"], "rb")


def scaled(image: np.ndarray, shortest_side: int) -> np.ndarray:
    """[H, W, 3] uint8 with that shortest side, in pixels."""
    height, width = image.shape[:2]
    if min(height, width) == shortest_side:
        return image
    scale = shortest_side / min(height, width)
    size = (max(shortest_side, round(width * scale)), max(shortest_side, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 8 instead of scaling
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    return image.convert("RGB")
