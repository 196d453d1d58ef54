"""Images: square crops of files, and images that fit into memory. `vpvae_hf.pixels` says what is read from a file.

Shapes: images [H, W, C] uint8 of any size, C is 3 unless a crop says otherwise; S the side of a crop in pixels; batches
[B, C, S, S] float32 in [-1, 1].
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vpvae_hf.pixels import MODES, center_crop, read_pixels, scaled, scaled_for_crop, to_pixel_values
from vpvae_hf.settings import installed_with, require, require_count, require_integer
from vpvae_hf.unreadable import SkippedFiles, UnreadableFileError

from .sources import Transform, open_images

# Before it is filtered, a draft is at least this many times larger than wanted: Pillow's own value for thumbnails.
_DRAFT_GAP = 2
# Real images without a download: the other images of scikit-image need one or are no photographs.
_FROM_SKIMAGE = ("astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "rocket")
_FROM_SKLEARN = ("china.jpg", "flower.jpg")


@dataclass(frozen=True, kw_only=True)
class ImageCrop(Transform):
    """Square crops: items [S, S, C] uint8, batches [B, C, S, S] float32 in [-1, 1].

    Args:
        size: S.
        shortest_side: images are scaled to it; None scales only images that are smaller than S, to S.
        crop: "random" or "center".
        flip: mirror half of the images.
        channels: C, 1 for grey, 3 for RGB, 4 for RGBA; see `vpvae_hf.pixels`.
        draft: decode and scale large images faster, with slightly different pixels; it needs a `shortest_side`.
    """

    kind: ClassVar[str] = "image"

    size: int
    shortest_side: int | None = None
    crop: Literal["random", "center"] = "center"
    flip: bool = False
    channels: int = 3
    draft: bool = False

    def __post_init__(self):
        require_integer("size", self.size, 1)
        require(self.channels in MODES, "channels", self.channels, f"one of {', '.join(map(str, MODES))}")
        require_count("shortest_side", self.shortest_side)
        side = self.shortest_side
        require(side is None or side >= self.size, "shortest_side", side, f"at least the size of a crop, {self.size}")
        if self.draft and side is None:
            raise ValueError("draft is for images that are scaled down; give a shortest_side, or leave draft out")

    def read(self, file: Mapping | None, rng: np.random.Generator) -> Tensor:
        return self.cut(read_pixels(file, self.channels, _DRAFT_GAP * self.shortest_side if self.draft else None), rng)

    def cut(self, pixels: np.ndarray, rng: np.random.Generator) -> Tensor:
        """The item made from pixels [H, W, C] uint8."""
        image = scaled_for_crop(pixels, self.size, self.shortest_side, _DRAFT_GAP if self.draft else None)
        if self.crop == "center":
            crop = center_crop(image, self.size, self.size)
        else:
            crop = _random_crop(image, self.size, rng)
        crop = _maybe_mirrored(crop, rng) if self.flip else crop
        # A copy: Pillow's arrays are read-only, and a mirrored view has a negative stride, which torch does not take.
        return torch.from_numpy(crop.copy())

    def model_input(self, batch: Tensor) -> Tensor:
        return to_pixel_values(batch)


def load_images(
    name: str, *, split: str, limit: int, shortest_side: int, column: str | None = None
) -> list[np.ndarray]:
    """The first images [H, W, 3] uint8 of a data set. Unreadable files are skipped, counted and logged.

    Args:
        name, split, column: arguments of `open_images`, whose errors are raised, too.
        limit: the largest number of images to read.
        shortest_side: length in pixels that the shortest side is scaled to.
    """
    require_integer("limit", limit, 1)
    source = open_images(name, split=split, column=column)
    images, skipped = [], SkippedFiles(f"images of {name}")
    for row in source.rows:
        try:
            images.append(scaled(read_pixels(source.file(row[source.column])), shortest_side))
        except UnreadableFileError as error:
            skipped.add([str(error)], 1)
        if len(images) == limit:
            break
    skipped.tell()
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

    There must be at least one image, and each must have sides of at least S = `size`.
    """
    _check_sizes(images, size)
    rng = np.random.default_rng(seed)
    areas = np.array([image.shape[0] * image.shape[1] for image in images], dtype=float)

    def batch() -> Tensor:
        chosen = rng.choice(len(images), size=batch_size, p=areas / areas.sum())
        return to_pixel_values(np.stack([_maybe_mirrored(_random_crop(images[i], size, rng), rng) for i in chosen]))

    return (batch() for _ in itertools.count())


def center_crops(images: Sequence[np.ndarray], *, size: int, batch_size: int) -> Iterator[Tensor]:
    """Every crop of a grid centred on each image, once, without overlap, in order; arguments as for `random_crops`."""
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


def _random_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    top, left = (rng.integers(side - size + 1) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def _maybe_mirrored(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image[:, ::-1] if rng.random() < 0.5 else image
