"""A data set's images or audio as Parquet files of codes, one for each of its shards."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vpvae_hf.files import write_atomically

from .coders import Coder
from .sources import Source, UnreadableFileError
from .streams import ShardReader, shard_groups

_ROWS_AT_ONCE = 1000
_SKIPPED = b"vpvae_hf.skipped"


class CodeFiles:
    """Files `data/{split}-00003-of-00128.parquet` with the coder's columns and the data set's other columns.

    A file has its name only when it is whole, so what an interrupted run has finished need not be done again.

    Args:
        source: opened with `other_columns=True`.
        folder: that holds "data".
        split: part of the files' names.
        coder: an `ImageCoder` or an `AudioCoder`.

    Attributes:
        count: of files.

    Raises:
        ValueError: the data set has a column that the coder makes.
    """

    def __init__(self, source: Source, folder: Path, *, split: str, coder: Coder):
        for column in coder.features():
            if column in source.rows.features:
                raise ValueError(f'data set {source.name} has a column "{column}" already; rename it there')
        self._source, self._folder, self._split, self._coder = source, folder / "data", split, coder
        self.count = shard_groups(source.rows)

    def unfinished(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Numbers of the files that are still to be written by this rank."""
        return [number for number in range(rank, self.count, world_size) if not self._path(number).exists()]

    def write(self, number: int, *, batch_size: int, progress: Callable[[int], None] = lambda files: None) -> None:
        """Write a file.

        Args:
            batch_size: images or clips encoded at once.
            progress: told of files as they are encoded.

        Raises:
            ValueError: a shard that cannot be read, or a file that the coder does not allow.
        """
        from pyarrow.parquet import ParquetWriter

        path, features, skipped = self._path(number), self._features(), 0
        with write_atomically(path) as aside, ParquetWriter(aside, features.arrow_schema) as writer:
            written: list[dict[str, Any]] = []
            for rows, samples in self._decoded(number, batch_size * self._coder.batches_at_once):
                tokenized = self._tokenized(rows, samples, batch_size)
                skipped += len(rows) - len(tokenized)
                written += tokenized
                progress(len(rows))
                if len(written) >= _ROWS_AT_ONCE:
                    writer.write_table(_table(written, features))
                    written = []
            if written:
                writer.write_table(_table(written, features))
            writer.add_key_value_metadata({_SKIPPED: str(skipped)})

    def totals(self) -> tuple[int, int]:
        """Rows, and unreadable files of the data set, in the files, all of which must be finished."""
        from pyarrow.parquet import read_metadata

        files = [read_metadata(self._path(number)) for number in range(self.count)]
        return sum(file.num_rows for file in files), sum(int(file.metadata[_SKIPPED]) for file in files)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._split}-{number:05d}-of-{self.count:05d}.parquet"

    def _features(self):
        from datasets import Features

        others = {name: kind for name, kind in self._source.rows.features.items() if name != self._source.column}
        return Features({**self._coder.features(), **others})

    def _decoded(self, number: int, count: int) -> Iterator[tuple[list[dict], Iterable[Tensor | None]]]:
        """So many rows at a time and their samples; threads decode some while the ones before are encoded."""
        # Other columns go from file to file as they are, images and audio among them.
        undecoded = self._source.rows.decode(False)
        rows = iter(ShardReader(undecoded, number, self.count, seed=None, passes=1))
        waiting: deque = deque()
        with ThreadPoolExecutor() as threads:
            for some in iter(lambda: list(itertools.islice(rows, count)), []):
                waiting.append((some, threads.map(self._sample, [row.pop(self._source.column) for row in some])))
                if len(waiting) > 1:
                    yield waiting.popleft()
            yield from waiting

    def _sample(self, file) -> Tensor | None:
        try:
            return self._coder.cut.read(file, np.random.default_rng(0))
        except UnreadableFileError:
            return None

    def _tokenized(self, rows: list[dict], samples: Iterable[Tensor | None], batch_size: int) -> list[dict[str, Any]]:
        """The rows whose file could be read, with its codes."""
        readable = [(row, sample) for row, sample in zip(rows, samples, strict=True) if sample is not None]
        columns = self._coder.columns([sample for _, sample in readable], batch_size)
        return [{**made, **row} for made, (row, _) in zip(columns, readable, strict=True)]


def _table(rows: list[dict[str, Any]], features):
    from datasets import Audio, Dataset, Features, Value

    # To encode a column of audio takes torchcodec, even where its files stay as they are.
    encoded = {"bytes": Value("binary"), "path": Value("string")}
    storable = {name: encoded if isinstance(kind, Audio) else kind for name, kind in features.items()}
    return Dataset.from_list(rows, features=Features(storable)).with_format("arrow")[:]
