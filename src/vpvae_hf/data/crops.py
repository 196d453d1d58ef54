"""Square crops of photographs.

Shapes: images [H, W, 3] uint8 arrays of any size; batches [B, 3, S, S] float32 in [-1, 1].
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def to_pixel_values(images: np.ndarray) -> Tensor:
    """[B, 3, H, W] float32 in [-1, 1] from [B, H, W, 3] uint8."""
    return torch.from_numpy(images.astype(np.float32)).movedim(-1, 1) / 127.5 - 1


def random_crops(images: Sequence[np.ndarray], *, size: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of random crops, half of them mirrored; an image is chosen in proportion to its area.

    Args:
        images: at least one, each at least `size` a side.
        size: S.

    Raises:
        ValueError: no images, or one that is too small.
    """
    _check_sizes(images, size)
    rng = np.random.default_rng(seed)
    areas = np.array([image.shape[0] * image.shape[1] for image in images], dtype=float)

    def batch() -> Tensor:
        chosen = rng.choice(len(images), size=batch_size, p=areas / areas.sum())
        return to_pixel_values(np.stack([_random_crop(images[i], size, rng) for i in chosen]))

    return (batch() for _ in itertools.count())


def center_crops(images: Sequence[np.ndarray], *, size: int, batch_size: int) -> Iterator[Tensor]:
    """Every crop of a grid centred on each image, once, without overlap, in order.

    Args:
        images: at least one, each at least `size` a side.
        size: S.

    Raises:
        ValueError: no images, or one that is too small.
    """
    _check_sizes(images, size)
    crops = []
    for image in images:
        height, width = image.shape[:2]
        tops = range(height % size // 2, height - size + 1, size)
        lefts = range(width % size // 2, width - size + 1, size)
        crops += [image[y : y + size, x : x + size] for y in tops for x in lefts]
    starts = range(0, len(crops), batch_size)
    return (to_pixel_values(np.stack(crops[start : start + batch_size])) for start in starts)


def _random_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    top = rng.integers(image.shape[0] - size + 1)
    left = rng.integers(image.shape[1] - size + 1)
    crop = image[top : top + size, left : left + size]
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def _check_sizes(images: Sequence[np.ndarray], size: int) -> None:
    if not images:
        raise ValueError("no images to crop")
    smallest = min(min(image.shape[:2]) for image in images)
    if smallest < size:
        raise ValueError(
            f"an image has a side of {smallest} pixels, crops need {size}; use smaller crops or enlarge it"
        )
