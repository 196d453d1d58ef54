"""A data set's images as Parquet files of codes, one for each of its shards.

Shapes: B images, S the side of a crop in pixels, f the tokenizer's factor, h = w = S / f, K codes.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .crops import center_crop, to_pixel_values
from .decoding import decode_image, scaled
from .shards import ShardReader, shard_groups
from .source import ImageSource

_ROWS_AT_ONCE = 1000
_SKIPPED = b"vpvae_hf.skipped"


def code_dtype(codebook_size: int) -> str:
    """The smallest of the integer types of files that holds the codes 0..K-1."""
    if codebook_size <= 1 << 8:
        return "uint8"
    return "uint16" if codebook_size <= 1 << 16 else "int32"


class CodeFiles:
    """Files `data/{split}-00003-of-00128.parquet` with the column "codes" [h, w] and the data set's other columns.

    A file has its name only when it is whole, so what an interrupted run has finished need not be done again.

    Args:
        source: opened with `other_columns=True`.
        folder: that holds "data".
        split: part of the files' names.
        size: S.
        shortest_side: images are scaled to it.
        model: a fitted tokenizer, such as `AutoencoderVP`, in eval mode.

    Attributes:
        count: of files.

    Raises:
        ValueError: a size that is no multiple of f, a shortest side below the size, or a column "codes" that exists.
    """

    def __init__(self, source: ImageSource, folder: Path, *, split: str, size: int, shortest_side: int, model):
        factor = model.downsample_factor
        if size < 1 or size % factor:
            near = max(factor, size // factor * factor)
            raise ValueError(f"size must be a multiple of the tokenizer's factor {factor}, got {size}; try {near}")
        if shortest_side < size:
            raise ValueError(f"shortest_side must be at least the size of a crop, {size}, got {shortest_side}")
        if "codes" in source.rows.features:
            raise ValueError(f'data set {source.name} has a column "codes" already; rename it there')
        self._source, self._folder, self._split = source, folder / "data", split
        self._size, self._shortest_side, self._model = size, shortest_side, model
        self.count = shard_groups(source.rows)

    def unfinished(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Numbers of the files that are still to be written by this rank."""
        return [number for number in range(rank, self.count, world_size) if not self._path(number).exists()]

    def write(self, number: int, *, batch_size: int, progress: Callable[[int], None] = lambda images: None) -> None:
        """Write a file.

        Args:
            batch_size: B, images encoded at once.
            progress: told of images as they are encoded.

        Raises:
            ValueError: a shard that cannot be read.
        """
        from pyarrow.parquet import ParquetWriter

        path, features, skipped = self._path(number), self._features(), 0
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with ParquetWriter(partial, features.arrow_schema) as writer:
            written: list[dict[str, Any]] = []
            for rows, images in self._decoded(number, batch_size):
                tokenized = self._tokenized(rows, images)
                skipped += len(rows) - len(tokenized)
                written += tokenized
                progress(len(rows))
                if len(written) >= _ROWS_AT_ONCE:
                    writer.write_table(_table(written, features))
                    written = []
            if written:
                writer.write_table(_table(written, features))
            writer.add_key_value_metadata({_SKIPPED: str(skipped)})
        os.replace(partial, path)

    def totals(self) -> tuple[int, int]:
        """Images and unreadable ones in the files, all of which must be finished."""
        from pyarrow.parquet import read_metadata

        files = [read_metadata(self._path(number)) for number in range(self.count)]
        return sum(file.num_rows for file in files), sum(int(file.metadata[_SKIPPED]) for file in files)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._split}-{number:05d}-of-{self.count:05d}.parquet"

    def _features(self):
        from datasets import Array2D, Features

        others = {name: kind for name, kind in self._source.rows.features.items() if name != self._source.column}
        side = self._size // self._model.downsample_factor
        return Features({"codes": Array2D((side, side), code_dtype(self._model.quantize.codebook_size)), **others})

    def _decoded(self, number: int, batch_size: int) -> Iterator[tuple[list[dict], Iterable[np.ndarray | None]]]:
        """Batches of rows and their crops; threads decode a batch while the one before it is encoded."""
        # Other columns go from file to file as they are, images and audio among them.
        undecoded = self._source.rows.decode(False)
        rows = iter(ShardReader(undecoded, number, self.count, seed=None, passes=1))
        waiting: deque = deque()
        with ThreadPoolExecutor() as threads:
            for batch in iter(lambda: list(itertools.islice(rows, batch_size)), []):
                waiting.append((batch, threads.map(self._crop, [row.pop(self._source.column) for row in batch])))
                if len(waiting) > 1:
                    yield waiting.popleft()
            yield from waiting

    def _crop(self, file) -> np.ndarray | None:
        """[S, S, 3] uint8."""
        image = decode_image(file)
        return None if image is None else center_crop(scaled(image, self._shortest_side), self._size)

    def _tokenized(self, rows: list[dict], images: Iterable[np.ndarray | None]) -> list[dict[str, Any]]:
        """The rows whose image could be read, with its codes."""
        readable = [(row, image) for row, image in zip(rows, images, strict=True) if image is not None]
        if not readable:
            return []
        pixel_values = to_pixel_values(torch.from_numpy(np.stack([image for _, image in readable])))
        codes = self._model.tokenize(pixel_values.to(self._model.device)).cpu().numpy()
        codes = codes.astype(code_dtype(self._model.quantize.codebook_size))
        return [{"codes": image_codes, **row} for image_codes, (row, _) in zip(codes, readable, strict=True)]


def _table(rows: list[dict[str, Any]], features):
    from datasets import Dataset

    return Dataset.from_list(rows, features=features).with_format("arrow")[:]
