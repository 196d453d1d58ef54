"""Writes a data set's items as Parquet files of codes, one file per shard: [h, w] for an image, [n] for a clip."""

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vpvae_hf.files import read_json, require_folder, same_place, write_atomically, write_json
from vpvae_hf.unreadable import SkippedFiles, UnreadableFileError

from .sources import Source, Transform
from .streams import ShardReader, shard_groups

# This file records what made the files next to it, so that they are never mixed with those of another run.
MANIFEST = "tokenizer.json"
# The tokenizer's place may change, but neither the tokenizer nor the precision, which decides some of the codes.
_MAY_DIFFER = ("tokenizer", "tokenizer_revision", "device_type", "torch", "batch_size")
# Fields that manifests of older versions lack.
_UNSAID = {"dtype": "float32", "compiled": False, "exact": False, "limit": None, "refine_steps": 0}
_ROWS_AT_ONCE = 1000
_SKIPPED, _REASONS = b"vpvae_hf.skipped", b"vpvae_hf.skipped_reasons"


def code_dtype(codebook_size: int) -> str:
    """The smallest of the integer types in files that can hold the codes 0..K-1."""
    return "uint8" if codebook_size <= 1 << 8 else "uint16" if codebook_size <= 1 << 16 else "int32"


class CodeFiles:
    """Files `data/{split}-00003-of-00128.parquet` with columns of codes and the data set's other columns.

    A file gets its name only when it is complete, so an interrupted run continues after the files that it finished.

    Args:
        source: opened with its other columns.
        folder: the folder that holds "data".
        split: part of the files' names.
        features: the columns of codes, as `datasets` describes them.
        encode: gives the values of these columns for the items of each list, list by list, encoding `batch_size` items
            together.
        batches_decoded: the files of this many batches are decoded before the first of these batches is encoded.
        limit: take only the data set's first `limit` files; unreadable ones count. None for all.

    Attributes:
        count: number of files.
    """

    def __init__(
        self,
        source: Source,
        folder: Path,
        *,
        split: str,
        transform: Transform,
        features: Mapping[str, Any],
        encode: Callable[..., Iterator[list[dict[str, Any]]]],
        batches_decoded: int = 1,
        limit: int | None = None,
    ):
        for column in features:
            if column in source.rows.features:
                raise ValueError(f'data set {source.name} has a column "{column}" already; rename it there')
        self._source, self._folder, self._split, self._transform = source, folder / "data", split, transform
        self._code_features, self._encode, self._batches_decoded = features, encode, batches_decoded
        self._groups = shard_groups(source.rows)
        self._lengths = [None] * self._groups if limit is None else self._first_lengths(limit)
        self.count = len(self._lengths)

    def unfinished(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Numbers of the files that this rank still has to write."""
        return [number for number in range(rank, self.count, world_size) if not self._path(number).exists()]

    def write(self, number: int, *, batch_size: int, progress: Callable[[int], None] = lambda files: None) -> None:
        """Write a file, encoding `batch_size` items together; raise a ValueError if a shard or a file is not allowed.

        Args:
            progress: called with the number of the data set's files that were decoded since the last call.
        """
        from datasets import Features
        from pyarrow.parquet import ParquetWriter

        others = {name: kind for name, kind in self._source.rows.features.items() if name != self._source.column}
        features, skipped = Features({**self._code_features, **others}), self._skipped()
        path = self._path(number)
        with write_atomically(path) as aside, ParquetWriter(aside, features.arrow_schema) as writer:
            written: list[dict[str, Any]] = []
            waiting: deque = deque()
            items = self._readable(number, batch_size * self._batches_decoded, skipped, waiting, progress)
            for columns in self._encode(items, batch_size=batch_size):
                written += [{**codes, **row} for codes, row in zip(columns, waiting.popleft(), strict=True)]
                if len(written) >= _ROWS_AT_ONCE:
                    writer.write_table(_table(written, features))
                    written = []
            if written:
                writer.write_table(_table(written, features))
            writer.add_key_value_metadata({_SKIPPED: str(skipped.count), _REASONS: json.dumps(skipped.reasons)})

    def totals(self) -> tuple[int, int]:
        """Rows of all files, which must be finished, and how many of the data set's files could not be read.

        The reasons for the first of these are logged.
        """
        from pyarrow.parquet import read_metadata

        files = [read_metadata(self._path(number)) for number in range(self.count)]
        skipped = self._skipped()
        for file in files:
            # Files of an older version have no reasons.
            skipped.add(json.loads(file.metadata.get(_REASONS, b"[]")), int(file.metadata[_SKIPPED]))
        skipped.tell()
        return sum(file.num_rows for file in files), skipped.count

    def _skipped(self) -> SkippedFiles:
        return SkippedFiles(f"{self._transform.kind}s of {self._source.name}")

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._split}-{number:05d}-of-{self.count:05d}.parquet"

    def _first_lengths(self, limit: int) -> list[int]:
        """The number of rows of each of the files that together hold the first `limit` rows."""
        lengths: list[int] = []
        while sum(lengths) < limit and len(lengths) < self._groups:
            rows = ShardReader(self._source.rows.decode(False), len(lengths), self._groups, seed=None, passes=1)
            lengths.append(sum(1 for _ in itertools.islice(rows, limit - sum(lengths))))
        return lengths

    def _readable(
        self, number: int, count: int, skipped: SkippedFiles, waiting: deque, progress: Callable[[int], None]
    ) -> Iterator[list[Tensor]]:
        """Lists of the readable items of `count` rows each; the rows of these items go to `waiting`."""
        for rows, items in self._decoded(number, count):
            pairs = list(zip(rows, items, strict=True))
            readable = [(row, item) for row, item in pairs if isinstance(item, Tensor)]
            reasons = [str(item) for _, item in pairs if not isinstance(item, Tensor)]
            skipped.add(reasons, len(reasons))
            progress(len(pairs))
            if readable:
                waiting.append([row for row, _ in readable])
                yield [item for _, item in readable]

    def _decoded(self, number: int, count: int) -> Iterator[tuple[list[dict], Iterable[Tensor | UnreadableFileError]]]:
        """`count` rows at a time with their items or errors; threads decode the next ones while these are encoded."""
        # Other columns, images and audio among them, are copied without decoding.
        undecoded = self._source.rows.decode(False)
        rows = ShardReader(undecoded, number, self._groups, seed=None, passes=1)
        rows = itertools.islice(rows, self._lengths[number])
        waiting: deque = deque()
        with ThreadPoolExecutor() as threads:
            for some in iter(lambda: list(itertools.islice(rows, count)), []):
                files = [self._source.file(row.pop(self._source.column)) for row in some]
                waiting.append((some, threads.map(self._item, files)))
                if len(waiting) > 1:
                    yield waiting.popleft()
            yield from waiting

    def _item(self, file) -> Tensor | UnreadableFileError:
        try:
            return self._transform.read(file, np.random.default_rng(0))
        except UnreadableFileError as error:
            return error


def _table(rows: list[dict[str, Any]], features):
    from datasets import Audio, Dataset, Features, Value

    # Encoding a column of audio needs torchcodec, even if its files stay as they are.
    encoded = {"bytes": Value("binary"), "path": Value("string")}
    storable = {name: encoded if isinstance(kind, Audio) else kind for name, kind in features.items()}
    return Dataset.from_list(rows, features=Features(storable)).with_format("arrow")[:]


def claim_code_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Claim a folder for a run with some settings, or check that it is claimed for them. Ranks may do so together.

    A folder that was claimed by a run that has written nothing counts as free.
    """
    require_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MANIFEST).exists():
        # Another rank may be writing the manifest to a temporary file.
        others = [file.name for file in folder.iterdir() if not file.name.startswith(f".{MANIFEST}")]
        if others and not (folder / MANIFEST).exists():
            raise FileExistsError(f"{folder} holds other files ({min(others)}) and no {MANIFEST}; name another folder")
        _write_claim(folder, settings)
    # Before the manifest is read: a rank that has written a file has claimed the folder for this run.
    written = sorted(file.name for file in (folder / "data").glob("*"))
    held = _UNSAID | read_json(folder / MANIFEST)
    # Manifests of older versions do not say whether TF32 was on.
    compared = settings if "tf32" in held else {name: settings[name] for name in settings if name != "tf32"}
    differs = next((name for name, value in compared.items() if not _agree(name, held.get(name), value)), None)
    if differs is None:
        return
    if written and not any(name.endswith(".parquet") for name in written):
        raise ValueError(
            f"another run is writing {folder / 'data' / written[0]}; name another folder, or remove that file if its "
            "run was killed"
        )
    if written:
        raise ValueError(
            f"{folder} holds codes of another run: its {differs} is {held.get(differs)!r}, here it is "
            f"{settings[differs]!r}; go on with the same settings, or name another folder"
        )
    _write_claim(folder, settings)


def _write_claim(folder: Path, settings: dict[str, Any]) -> None:
    items = settings["items"]
    write_json(folder / MANIFEST, {**settings, items: None, f"unreadable_{items}": None})


def _agree(name: str, held: Any, value: Any) -> bool:
    return name in _MAY_DIFFER or held == value or (name == "dataset" and same_place(held or "", value))


def write_totals(folder: Path, items: int, unreadable: int) -> None:
    """Add the counts of a finished run to its manifest."""
    held = read_json(folder / MANIFEST)
    write_json(folder / MANIFEST, held | {held["items"]: items, f"unreadable_{held['items']}": unreadable})
