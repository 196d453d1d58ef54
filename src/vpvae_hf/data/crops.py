"""Square crops of photographs.

Shapes: images [H, W, 3] uint8 arrays of any size; batches [B, 3, S, S] float32 in [-1, 1].
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def to_pixel_values(images: np.ndarray | Tensor) -> Tensor:
    """[B, 3, H, W] float32 in [-1, 1] from [B, H, W, 3] uint8."""
    values = images.float() if isinstance(images, Tensor) else torch.from_numpy(images.astype(np.float32))
    return values.movedim(-1, 1) / 127.5 - 1


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
        return to_pixel_values(np.stack([maybe_mirrored(random_crop(images[i], size, rng), rng) for i in chosen]))

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


def random_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """[S, S, 3] from [H, W, 3], H and W at least S."""
    top = rng.integers(image.shape[0] - size + 1)
    left = rng.integers(image.shape[1] - size + 1)
    return image[top : top + size, left : left + size]


def maybe_mirrored(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image, half of the time mirrored left to right."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """[S, S, 3] from [H, W, 3], H and W at least S."""
    top, left = ((side - size) // 2 for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def _check_sizes(images: Sequence[np.ndarray], size: int) -> None:
    if not images:
        raise ValueError("no images to crop")
    smallest = min(min(image.shape[:2]) for image in images)
    if smallest < size:
        raise ValueError(
            f"an image has a side of {smallest} pixels, crops need {size}; use smaller crops or enlarge it"
        )
