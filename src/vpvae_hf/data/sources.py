"""Data sets of images or audio from the `datasets` library, a hub id or a local path, as rows of undecoded files."""

import glob
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vpvae_hf.files import hint_at_local_path, local_path
from vpvae_hf.renamed import FormerMethod
from vpvae_hf.settings import installed_with

from .folders import (
    check_split,
    find_files,
    known_suffixes,
    require_validation_share,
)

# Shards of a data set that is not streamed; enough for the readers of a large job.
_LOCAL_SHARDS = 256
# A shard's clips are encoded in batches of their own, so a shard of local files should hold several.
_FILES_PER_SHARD = 64
# Types of columns that may hold a file's bytes or path.
_OF_FILES = frozenset(("binary", "large_binary", "binary_view", "string", "large_string", "string_view"))


class Transform(ABC):
    """Makes an item from a file: decodes the file and cuts out what a model takes.

    It holds only settings, so that it can be sent to worker processes.
    """

    kind: ClassVar[str]  # what messages call such a file

    @abstractmethod
    def read(self, file: Mapping | None, rng: np.random.Generator) -> Tensor:
        """One item, in its smallest form, from a mapping of "bytes" and "path"; the generator decides what is random.

        Raises:
            UnreadableFileError: this file must be skipped, since it cannot be read or is missing.
            ValueError: there is a problem with all files.
        """

    sample = FormerMethod("read")

    def collate(self, items: list[Tensor]) -> Tensor:
        """A batch in the form of the items, in which workers send it."""
        return torch.stack(items)

    @abstractmethod
    def model_input(self, batch: Tensor) -> Tensor | dict[str, Tensor]:
        """A collated batch as a model takes it, on the batch's device."""


@dataclass(frozen=True)
class Source:
    """Rows of a data set. The files of one column are still encoded, so that a corrupt one can be skipped.

    Attributes:
        name: hub id or local path.
        rows: a `datasets.IterableDataset`, or `JoinedRows` of several.
        column: name of the column with the files, which `file` takes.
        folder: the folder to which paths in the column are relative, if other programs wrote them; None if `datasets`
            knows the column's type.
        length: how many rows there are; None if that is not known without reading them.
    """

    name: str
    rows: Any
    column: str
    folder: str | None = None
    length: int | None = None

    def file(self, value: Any) -> Any:
        """A value of the column as a transform takes it: None or a mapping of "bytes" and "path"."""
        if self.folder is None or value is None:
            return value
        if isinstance(value, bytes):
            return {"bytes": value, "path": None}
        file = {"path": value} if isinstance(value, str) else value
        path = file.get("path")
        if path is not None and "://" not in path:
            path = os.path.join(self.folder, path)
        return {"bytes": file.get("bytes"), "path": path}


def open_images(name: str | os.PathLike, **options) -> Source:
    """Open a data set of images: a hub id or what lies at a local path; see `open_source`."""
    return open_source("image", name, **options)


def open_audio(name: str | os.PathLike, **options) -> Source:
    """Open a data set of audio: a hub id or what lies at a local path; see `open_source`."""
    return open_source("audio", name, **options)


def open_source(
    kind: str,
    name: str | os.PathLike,
    *,
    split: str,
    config: str | None = None,
    revision: str | None = None,
    column: str | None = None,
    streaming: bool = True,
    other_columns: bool = False,
    validation_share: float = 0.0,
) -> Source:
    """Open a data set of "image" or "audio" files, which are read when it is iterated.

    A local path names a folder of files in any readable format, or one file; Parquet, Arrow and tar files or a folder
    of them; or a list of files: CSV or JSON lines with a column "file_name". A local path has priority over a hub id of
    the same spelling. Zip files must be unpacked.

    The splits of a folder of files are its folders "train", "validation" and "test"; "training", "valid", "val", "dev",
    "testing", "eval" and "evaluation" mean the same, and a number may follow, as in "val2017". Without them all files
    are the split "train". Hidden files are not read, and links are followed. A warning lists what else is left out,
    such as files of formats that cannot be read.

    The columns of images are "image" and those of tables metadata.csv, .jsonl or .parquet that have a column
    "file_name"; without such a table they are "image" and, if each image is in a folder of its class, "label". The
    columns of audio are "audio" and "file_name", the path within the folder; tables next to the files, such as
    transcripts, are not read.

    Args:
        split: e.g. "train", or several joined by "+"; a slice such as "train[:1000]" if it is not streamed.
        config: name of a configuration (subset), for a data set that has several.
        revision: branch, tag or commit on the hub.
        column: name of the column with the files; None finds it by its type. A column that is named may also hold
            encoded files, or paths that are absolute or relative to the data set's folder, as other programs write
            them. A column "image" or "audio" of structs of bytes and path need not be named.
        streaming: read the data set while it is used; otherwise it is downloaded and prepared first.
        other_columns: keep the data set's other columns in the rows.
        validation_share: if all local files are the split "train", about this share of them, at least one, is
            "validation" instead. The files' names decide which files.

    Raises:
        ValueError: no such split or column, or no file that can be read.
        FileNotFoundError: no such data set.
        ImportError: `datasets` is missing, or lacks torchcodec, which it needs for audio that is neither local nor in
            Parquet.
    """
    with installed_with("'vpvae_hf[train]'"):
        import datasets
    require_validation_share(validation_share)
    if not isinstance(split, str):
        raise ValueError(f'split must be the name of one, such as "train", got {split!r}')
    path = local_path(name, suffixes=known_suffixes())
    name = os.fspath(name)
    files = None if path is None else find_files(kind, name, path)
    if files is None:
        with hint_at_local_path(name):
            rows = _load(name, path, split, config, revision, streaming)
    elif config is not None or revision is not None:
        what = f"a folder of {files.noun}" if path.is_dir() else "a local file"
        raise ValueError(f"{name} is {what}, which has no config or revision; leave them out")
    else:
        files = files.set_aside(validation_share)
        check_split(name, split, list(files.splits), streaming)
        rows = files.rows(split)
    feature = {"image": datasets.Image, "audio": datasets.Audio}[kind](decode=False)
    features = rows.features or {}
    typed = [each for each, its_feature in features.items() if isinstance(its_feature, type(feature))]
    column = _column(kind, name, features, typed, column)
    if column in typed:
        rows = rows.cast_column(column, feature)
    rows = rows if other_columns else rows.select_columns([column])
    if files is None and streaming:
        length = _told_length(rows)
    else:
        length = len(rows)
        if length == 0:
            raise ValueError(f"data set {name} cannot be used: its split {split!r} is empty")
        shards = length // (1 if files is None else _FILES_PER_SHARD)
        rows = rows.to_iterable_dataset(num_shards=max(1, min(_LOCAL_SHARDS, shards)))
    folder = "" if path is None else os.path.abspath(path if path.is_dir() else path.parent)
    return Source(name, rows, column, None if column in typed else folder, length)


def _told_length(rows) -> int | None:
    """How many rows a streamed data set has according to its metadata; None if these do not say it."""
    if isinstance(rows, JoinedRows):
        lengths = [_told_length(part) for part in rows.parts]
        return None if None in lengths else sum(lengths)
    told = (rows.info.splits or {}).get(str(rows.split))
    return (told.num_examples if told else None) or None  # `datasets` has 0 for unknown numbers


def _column(kind: str, name: str, features: Mapping[str, Any], typed: list[str], column: str | None) -> str:
    """The column to read; `typed` are the columns that `datasets` knows to hold such files."""
    if column is None and len(typed) == 1:
        return typed[0]
    if column is None and not typed and isinstance(features.get(kind), Mapping):
        column = kind
    if column in typed or _holds_files(features.get(column)):
        return column
    asked = "name the one to use" if column is None else f"{column!r} is none of them"
    if not typed:
        asked += ". A column that is named may also hold the files' bytes, their paths, or structs of bytes and path"
    raise ValueError(
        f"data set {name} has {len(typed)} {kind} columns ({', '.join(typed) or 'none'}) among "
        f"{', '.join(features)}; {asked}"
    )


def _holds_files(feature: Any) -> bool:
    """Whether a column that `datasets` does not know to hold files may hold their bytes, paths, or structs of both."""
    if isinstance(feature, Mapping):
        return bool(feature) and feature.keys() <= {"bytes", "path"} and all(map(_holds_files, feature.values()))
    return getattr(feature, "dtype", None) in _OF_FILES


def library_missing(error: ImportError) -> ImportError:
    """The error for a data set that needs a missing library; it names a form of data set that needs none."""
    return ImportError(f"{error} A data set of Parquet files needs no such library.")


def _load(name: str, path: Path | None, split: str, config: str | None, revision: str | None, streaming: bool):
    """The rows of the named splits of a data set that `datasets` can read."""
    import datasets

    where, how = _where(name, path), {"revision": revision, "streaming": streaming}
    try:
        check_split(
            name, split, datasets.get_dataset_split_names(**where, config_name=config, revision=revision), streaming
        )
        # `datasets` joins splits itself unless it streams them.
        splits = split.split("+") if streaming else [split]
        parts = [datasets.load_dataset(**where, name=config, split=part, **how) for part in splits]
        return parts[0] if len(parts) == 1 else JoinedRows(parts)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, ImportError):
            raise library_missing(error.__cause__) from error
        raise


def _where(name: str, path: Path | None) -> dict[str, Any]:
    """The arguments by which `datasets` finds a data set."""
    if path is None:
        return {"path": name}
    if path.is_file():
        reader = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
        files = {"train": [glob.escape(os.path.abspath(path))]}
        return {"path": reader[path.suffix.lower()], "data_files": files}
    if any((path / each).is_file() for each in ("state.json", "dataset_dict.json")):
        raise ValueError(
            f"{name} was written by save_to_disk, which cannot be streamed; write a Parquet file for each split: "
            f'datasets.load_from_disk("{name}").to_parquet("FOLDER/train.parquet")'
        )
    if glob.has_magic(place := os.path.realpath(path)):
        raise ValueError(f"{place} cannot be read, since `datasets` takes *, ? and [ for patterns; rename it")
    return {"path": place}


class JoinedRows:
    """Several streamed splits as one, with the part of `datasets.IterableDataset` that readers use.

    The shards of all splits are distributed together. `datasets` itself would join the streams end to end, so that a
    reader would reach the second split only after the first.
    """

    def __init__(self, parts: list[Any]):
        self.parts = parts
        self.features = parts[0].features
        self.num_shards = sum(part.num_shards for part in parts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return chain.from_iterable(self.parts)

    def shard(self, num_shards: int, index: int):
        """Every num_shards-th shard from the index-th on, as one `datasets.IterableDataset`."""
        from datasets import concatenate_datasets

        shards = [(part, number) for part in self.parts for number in range(part.num_shards)]
        own = [part.shard(part.num_shards, number) for part, number in shards[index::num_shards]]
        return own[0] if len(own) == 1 else concatenate_datasets(own)

    def select_columns(self, columns: list[str]) -> "JoinedRows":
        return JoinedRows([part.select_columns(columns) for part in self.parts])

    def cast_column(self, column: str, feature: Any) -> "JoinedRows":
        return JoinedRows([part.cast_column(column, feature) for part in self.parts])

    def decode(self, enable: bool) -> "JoinedRows":
        return JoinedRows([part.decode(enable) for part in self.parts])
