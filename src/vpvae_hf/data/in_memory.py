"""The first images of a data set, all in memory."""

import logging

import numpy as np

from .files import UnreadableFileError
from .image_decoding import decode_image, scaled
from .source import open_images

_log = logging.getLogger(__name__)


def load_images(
    name: str, *, split: str, limit: int, shortest_side: int, column: str | None = None
) -> list[np.ndarray]:
    """The first images of a data set, scaled to a shortest side. Unreadable files are skipped and counted.

    Args:
        name: hub id or local path, as `datasets.load_dataset` takes it.
        split: e.g. "train".
        limit: the most images to read.
        shortest_side: in pixels, after scaling.
        column: that holds the images; found by its type where None.

    Returns:
        [H, W, 3] uint8 arrays.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: a limit below 1, no such split or image column, or no readable image.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    source = open_images(name, split=split, column=column)
    images, skipped = [], 0
    for row in source.rows:
        try:
            images.append(scaled(decode_image(row[source.column]), shortest_side))
        except UnreadableFileError:
            skipped += 1
        if len(images) == limit:
            break
    if skipped:
        _log.warning("skipped %d unreadable images of %s", skipped, name)
    if not images:
        raise ValueError(f"data set {name}, split {split!r}, column {source.column!r} holds no readable image")
    return images
