"""Small data sets whose pixels show which image they belong to and where in it they lie: red is its number, green the
row and blue the column."""

import io
from functools import partial
from pathlib import Path

import audio_files
import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vpvae_hf.data import ImageCrop, ItemLoader, ItemStream, open_images

OPEN, KIND, COLUMN = open_images, "image", "photo"
CORRUPT = b"<html>404</html>"
# Settings of `loader_of` for what varies from item to item.
RANDOM = {"size": 8, "crop": "random", "flip": True}


def picture(number: int, height: int = 12, width: int = 12) -> np.ndarray:
    """[H, W, 3] uint8."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([np.full_like(rows, number), rows, columns], axis=-1).astype(np.uint8)


def encoded(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def file(number: int) -> bytes:
    """A file of the image of that number."""
    return encoded(picture(number))


def whole() -> ImageCrop:
    """A transform that gives the whole image, which does not vary."""
    return ImageCrop(size=12)


write_shards = partial(audio_files.write_shards, column=COLUMN, kind=datasets.Image)


def write_counted(folder: Path, *counts: int) -> str:
    """Shards of so many images each, numbered through."""
    numbers = iter(range(sum(counts)))
    return write_shards(folder, [[file(next(numbers)) for _ in range(count)] for count in counts])


def loader_of(name: str, *, batch_size: int = 1, workers: int = 0, device: str = "cpu", **settings) -> ItemLoader:
    """A loader of crops of the split "train", 12 pixels a side by default; settings are those of crop and stream."""
    names = settings.keys() & {"size", "shortest_side", "crop", "flip"}
    crop = ImageCrop(**{"size": 12, **{each: settings.pop(each) for each in names}})
    stream = ItemStream(open_images(name, split="train"), crop, **settings)
    return ItemLoader(stream, batch_size=batch_size, workers=workers, device=device)


def bytes_of(pixel_values: Tensor) -> Tensor:
    """[B, S, S, 3] uint8 of [B, 3, S, S] in [-1, 1]."""
    return ((pixel_values + 1) * 127.5).round().to(torch.uint8).movedim(1, -1)


def numbers_of(batches) -> list[int]:
    """Which images the batches hold, in order."""
    return [number for batch in batches for number in bytes_of(batch)[:, 0, 0, 0].tolist()]
