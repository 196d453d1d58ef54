"""Images: files to arrays, square crops of them, and images that fit into memory.

Shapes: images [H, W, 3] uint8 of any size; S the side of a crop in pixels; batches [B, 3, S, S] float32 in [-1, 1].
"""

import io
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import fsspec
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vpvae_hf.settings import installed_with, require, require_integer

from .sources import Transform, UnreadableFileError, name_of, open_images

_log = logging.getLogger(__name__)

# Real images without a download: the other images of scikit-image need one or are no photographs.
_FROM_SKIMAGE = ("astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "rocket")
_FROM_SKLEARN = ("china.jpg", "flower.jpg")


@dataclass(frozen=True, kw_only=True)
class ImageCrop(Transform):
    """Square crops: items [S, S, 3] uint8, batches [B, 3, S, S] float32 in [-1, 1].

    Args:
        size: S.
        shortest_side: images are scaled to it; None scales only images that are smaller than S, to S.
        crop: "random" or "center".
        flip: mirror half of the images.
    """

    kind: ClassVar[str] = "image"

    size: int
    shortest_side: int | None = None
    crop: Literal["random", "center"] = "center"
    flip: bool = False

    def __post_init__(self):
        require_integer("size", self.size, 1)
        side = self.shortest_side
        require(side is None or side >= self.size, "shortest_side", side, f"at least the size of a crop, {self.size}")

    def read(self, file: Mapping | None, rng: np.random.Generator) -> Tensor:
        image = decode_image(file)
        if self.shortest_side is not None or min(image.shape[:2]) < self.size:
            image = _scaled(image, self.shortest_side or self.size)
        if self.crop == "center":
            top, left = ((side - self.size) // 2 for side in image.shape[:2])
            crop = image[top : top + self.size, left : left + self.size]
        else:
            crop = _random_crop(image, self.size, rng)
        crop = _maybe_mirrored(crop, rng) if self.flip else crop
        # A copy: Pillow's arrays are read-only, and a mirrored view has a stride that torch does not know.
        return torch.from_numpy(crop.copy())

    def model_input(self, batch: Tensor) -> Tensor:
        return to_pixel_values(batch)


def to_pixel_values(images: np.ndarray | Tensor) -> Tensor:
    """[B, 3, H, W] float32 in [-1, 1] from [B, H, W, 3] uint8."""
    values = images.float() if isinstance(images, Tensor) else torch.from_numpy(images.astype(np.float32))
    return values.movedim(-1, 1) / 127.5 - 1


def decode_image(file: Mapping | None) -> np.ndarray:
    """[H, W, 3] uint8, upright, from "bytes" or else "path"; raises UnreadableFileError."""
    if file is None:
        raise UnreadableFileError("there is no file")
    try:
        # A stream of image files on the hub gives only their addresses.
        opened = io.BytesIO(file["bytes"]) if file["bytes"] is not None else fsspec.open(file["path"], "rb")
        with opened as data, Image.open(data) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 8 instead of scaling
                upright = Image.fromarray((np.asarray(upright) // 257).astype(np.uint8))
            return np.asarray(upright.convert("RGB"))
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableFileError(f"{name_of(file)}: {error}") from error


def load_images(
    name: str, *, split: str, limit: int, shortest_side: int, column: str | None = None
) -> list[np.ndarray]:
    """The first images [H, W, 3] uint8 of a data set. Unreadable files are skipped and counted.

    Args:
        name, split, column: as `open_images` takes them; errors are as well.
        limit: the most images to read.
        shortest_side: in pixels, after scaling.
    """
    require_integer("limit", limit, 1)
    source = open_images(name, split=split, column=column)
    images, skipped = [], 0
    for row in source.rows:
        try:
            images.append(_scaled(decode_image(row[source.column]), shortest_side))
        except UnreadableFileError:
            skipped += 1
        if len(images) == limit:
            break
    if skipped:
        _log.warning("skipped %d unreadable images of %s", skipped, name)
    if not images:
        raise ValueError(f"data set {name}, split {split!r}, column {source.column!r} holds no readable image")
    return images


def load_photographs() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Twelve photographs of scikit-image and scikit-learn, each cut in two: the left three quarters for training, and
    the rest, held out, [H, W, 3] uint8.
    """
    with installed_with("'vpvae_hf[demo]'"):
        from skimage import data
        from sklearn.datasets import load_sample_image
    images = [getattr(data, name)() for name in _FROM_SKIMAGE]
    images += [data.stereo_motorcycle()[0], *(load_sample_image(name) for name in _FROM_SKLEARN)]
    images = [image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2) for image in images]
    halves = [(image[:, : image.shape[1] * 3 // 4], image[:, image.shape[1] * 3 // 4 :]) for image in images]
    return [training for training, _ in halves], [held_out for _, held_out in halves]


def random_crops(images: Sequence[np.ndarray], *, size: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of random crops, half of them mirrored; an image is chosen in proportion to its area.

    There must be at least one, and each must have sides of at least S = `size`.
    """
    _check_sizes(images, size)
    rng = np.random.default_rng(seed)
    areas = np.array([image.shape[0] * image.shape[1] for image in images], dtype=float)

    def batch() -> Tensor:
        chosen = rng.choice(len(images), size=batch_size, p=areas / areas.sum())
        return to_pixel_values(np.stack([_maybe_mirrored(_random_crop(images[i], size, rng), rng) for i in chosen]))

    return (batch() for _ in itertools.count())


def center_crops(images: Sequence[np.ndarray], *, size: int, batch_size: int) -> Iterator[Tensor]:
    """Every crop of a grid centred on each image, once, without overlap, in order; arguments as of `random_crops`."""
    _check_sizes(images, size)
    crops = []
    for image in images:
        tops, lefts = (range(side % size // 2, side - size + 1, size) for side in image.shape[:2])
        crops += [image[y : y + size, x : x + size] for y in tops for x in lefts]
    starts = range(0, len(crops), batch_size)
    return (to_pixel_values(np.stack(crops[start : start + batch_size])) for start in starts)


def _check_sizes(images: Sequence[np.ndarray], size: int) -> None:
    if not images:
        raise ValueError("no images to crop")
    smallest = min(min(image.shape[:2]) for image in images)
    if smallest < size:
        raise ValueError(
            f"an image has a side of {smallest} pixels, crops need {size}; use smaller crops or enlarge it"
        )


def _scaled(image: np.ndarray, shortest_side: int) -> np.ndarray:
    height, width = image.shape[:2]
    if min(height, width) == shortest_side:
        return image
    scale = shortest_side / min(height, width)
    size = (max(shortest_side, round(width * scale)), max(shortest_side, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _random_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    top, left = (rng.integers(side - size + 1) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def _maybe_mirrored(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image[:, ::-1] if rng.random() < 0.5 else image
