"""Images from the `datasets` library: a hub id or a local folder, read as a stream."""

import io
import logging
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image, ImageOps

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
    try:
        import datasets
    except ImportError as error:
        raise ImportError("datasets is missing; install it with: pip install 'vpvae_hf[train]'") from error
    splits = datasets.get_dataset_split_names(name)
    if split not in splits:
        raise ValueError(f"data set {name} has no split {split!r}; it has {', '.join(splits)}")
    stream = datasets.load_dataset(name, split=split, streaming=True)
    column = _image_column(name, column, stream.features or {}, datasets.Image)
    # Undecoded, so that one corrupt file can be skipped instead of ending the stream.
    stream = stream.cast_column(column, datasets.Image(decode=False)).select_columns([column])
    images, skipped = [], 0
    for image in _decoded(row[column] for row in stream):
        if image is None:
            skipped += 1
        else:
            images.append(_scaled(image, shortest_side))
        if len(images) == limit:
            break
    if skipped:
        _log.warning("skipped %d unreadable images of %s", skipped, name)
    if not images:
        raise ValueError(f"data set {name}, split {split!r}, column {column!r} holds no readable image")
    return images


def _image_column(name: str, column: str | None, features: Mapping, image_type: type) -> str:
    found = [column for column, feature in features.items() if isinstance(feature, image_type)]
    if column is None and len(found) == 1:
        return found[0]
    if column in found:
        return column
    asked = "name the one to use" if column is None else f"{column!r} is none of them"
    raise ValueError(
        f"data set {name} has {len(found)} image columns ({', '.join(found) or 'none'}) among "
        f"{', '.join(features)}; {asked}"
    )


def _decoded(files: Iterator[dict | None]) -> Iterator[np.ndarray | None]:
    for file in files:
        if file is None:
            yield None
            continue
        source = io.BytesIO(file["bytes"]) if file["bytes"] is not None else file["path"]
        try:
            with Image.open(source) as image:
                yield np.asarray(_as_rgb(ImageOps.exif_transpose(image)))
        except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError):
            yield None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 8 instead of scaling
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    return image.convert("RGB")


def _scaled(image: np.ndarray, shortest_side: int) -> np.ndarray:
    height, width = image.shape[:2]
    scale = shortest_side / min(height, width)
    size = (max(shortest_side, round(width * scale)), max(shortest_side, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
