"""Data sets of images or audio from the `datasets` library, a hub id or a local path, as rows of undecoded files."""

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

from vpvae_hf.settings import installed_with

# Shards of a data set that is not streamed; enough for the readers of a large job.
_LOCAL_SHARDS = 256
# A shard's clips are encoded in batches of their own, so a shard of a folder of audio should hold several.
_FILES_PER_SHARD = 64
_AUDIO_FILES = frozenset((".flac", ".mp3", ".ogg", ".wav"))
# `datasets` reads a folder with any of these in it.
_DATA_FILES = frozenset((".arrow", ".parquet", ".tar", ".zip"))
_FOLDER_SPLITS = ("train", "validation", "test")


class Transform(ABC):
    """Makes an item of a file: decodes it and cuts out what a model takes. It holds settings only, so that it can be
    sent to worker processes.
    """

    kind: ClassVar[str]  # what messages call such a file

    @abstractmethod
    def read(self, file: Mapping | None, rng: np.random.Generator) -> Tensor:
        """One item, in its smallest form, of a mapping of "bytes" and "path"; the generator decides what is random.

        Raises:
            UnreadableFileError: this file is to be skipped; there may be none in a row.
            ValueError: something is wrong that concerns all files.
        """

    def collate(self, items: list[Tensor]) -> Tensor:
        """A batch in the items' own form, in which workers send it."""
        return torch.stack(items)

    @abstractmethod
    def model_input(self, batch: Tensor) -> Tensor | dict[str, Tensor]:
        """A collated batch as a model takes it."""


@dataclass(frozen=True)
class Source:
    """Rows of a data set. The files of one column are still encoded, so that a corrupt one can be skipped.

    Attributes:
        name: hub id or local path.
        rows: a `datasets.IterableDataset`, or `JoinedRows` of several.
        column: name of the column with the files; each is None or a mapping of "bytes" and "path".
    """

    name: str
    rows: Any
    column: str


def open_images(name: str, **options) -> Source:
    """Open a data set of images, hub id or local path; its files are read when it is iterated; see `open_source`."""
    return open_source("image", name, **options)


def open_audio(name: str, **options) -> Source:
    """Open a data set of audio, hub id or local path, or a folder of WAV, FLAC, OGG or MP3 files; see `open_source`.

    If a folder has sub-folders "train", "validation" or "test", these are its splits; otherwise all its files are the
    split "train". Its columns are "audio" and "file_name", the path within the folder; tables beside the files, such as
    transcripts, are not read.
    """
    return open_source("audio", name, **options)


def open_source(
    kind: str,
    name: str,
    *,
    split: str,
    config: str | None = None,
    revision: str | None = None,
    column: str | None = None,
    streaming: bool = True,
    other_columns: bool = False,
) -> Source:
    """Open a data set of "image" or "audio" files.

    Args:
        split: e.g. "train", or several joined by "+"; a slice such as "train[:1000]" if it is not streamed.
        config: name of a configuration (subset), for a data set that has several.
        revision: branch, tag or commit on the hub.
        column: name of the column with the files; None finds it by its type.
        streaming: read the data set while it is used; otherwise it is downloaded and prepared first.
        other_columns: keep them in the rows.

    Raises:
        ValueError: no such split or column.
        FileNotFoundError: no such data set.
        ImportError: `datasets` is missing, or lacks torchcodec, which it needs for audio that is neither local nor in
            Parquet.
    """
    with installed_with("'vpvae_hf[train]'"):
        import datasets
    from_folder = kind == "audio" and _is_audio_folder(name)
    rows = (_load_audio_folder if from_folder else _load)(name, split, config, revision, streaming)
    features = rows.features or {}
    feature = {"image": datasets.Image, "audio": datasets.Audio}[kind](decode=False)
    found = [each for each, its_feature in features.items() if isinstance(its_feature, type(feature))]
    if column is None and len(found) == 1:
        column = found[0]
    if column not in found:
        asked = "name the one to use" if column is None else f"{column!r} is none of them"
        raise ValueError(
            f"data set {name} has {len(found)} {kind} columns ({', '.join(found) or 'none'}) among "
            f"{', '.join(features)}; {asked}"
        )
    rows = rows.cast_column(column, feature)
    rows = rows if other_columns else rows.select_columns([column])
    if not (streaming or from_folder):  # a folder's rows are a stream already
        rows = rows.to_iterable_dataset(num_shards=max(1, min(_LOCAL_SHARDS, len(rows))))
    return Source(name, rows, column)


def library_missing(error: ImportError) -> ImportError:
    """The error for a user whose data set needs a library, which another form of the data set does not."""
    return ImportError(f"{error} A data set of Parquet files needs no such library.")


def _load(name: str, split: str, config: str | None, revision: str | None, streaming: bool):
    """Splits of what `datasets` can read."""
    import datasets

    _check_split(name, split, datasets.get_dataset_split_names(name, config, revision=revision), streaming)
    how = {"revision": revision, "streaming": streaming}
    try:
        # `datasets` joins splits itself unless it streams them.
        splits = split.split("+") if streaming else [split]
        parts = [datasets.load_dataset(name, config, split=part, **how) for part in splits]
        return parts[0] if len(parts) == 1 else JoinedRows(parts)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, ImportError):
            raise library_missing(error.__cause__) from error
        raise


def _check_split(name: str, split: str, splits: list[str], streaming: bool) -> None:
    for part in split.split("+"):
        whole, bracket, _ = part.partition("[")
        if whole not in splits:
            raise ValueError(f"data set {name} has no split {whole!r}; it has {', '.join(splits)}")
        if streaming and bracket:
            raise ValueError(f"a stream has no slices, got split {part!r}; name a whole split, or do without streaming")


def _is_audio_folder(name: str) -> bool:
    """Whether it is a local folder with audio files and no files of data."""
    suffixes = {file.suffix.lower() for file in _files_below(Path(name))}
    return not suffixes.isdisjoint(_AUDIO_FILES) and suffixes.isdisjoint(_DATA_FILES)


def _load_audio_folder(name: str, split: str, config: str | None, revision: str | None, streaming: bool):
    """Splits of a folder of audio files, always as a stream; `datasets` reads such a folder only with torchcodec."""
    import datasets

    if config is not None or revision is not None:
        raise ValueError(f"{name} is a folder of audio files, which has no config or revision; leave them out")
    folder = Path(name)
    splits = _audio_splits(folder)
    _check_split(name, split, list(splits), streaming)
    lengths = {part: len(files) for part, files in splits.items()}
    parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    files = [file for part in parts for file in splits[part.splitname][part.from_ : part.to]]
    file_names = [file.relative_to(folder).as_posix() for file in files]
    rows = datasets.Dataset.from_dict({"audio": [str(file) for file in files], "file_name": file_names})
    # The cast comes last: encoding the column needs torchcodec, even though its files stay as they are.
    rows = rows.cast_column("audio", datasets.Audio(decode=False))
    return rows.to_iterable_dataset(num_shards=max(1, min(_LOCAL_SHARDS, len(files) // _FILES_PER_SHARD)))


def _audio_splits(folder: Path) -> dict[str, list[Path]]:
    """Audio files of each split, in the order of their names."""
    files = sorted(file for file in _files_below(folder) if file.suffix.lower() in _AUDIO_FILES)
    splits = {split: [file for file in files if file.relative_to(folder).parts[0] == split] for split in _FOLDER_SPLITS}
    splits = {split: its_files for split, its_files in splits.items() if its_files}
    if not splits:
        return {"train": files}
    if outside := set(files).difference(*splits.values()):
        raise ValueError(
            f"{folder} has audio files both in {', '.join(splits)} and outside, such as "
            f"{min(outside).relative_to(folder)}; move them to {', '.join(_FOLDER_SPLITS)} or elsewhere"
        )
    return splits


def _files_below(folder: Path) -> list[Path]:
    """All files that are not hidden; links to folders are followed, since large data often lies elsewhere."""
    found: list[Path] = []
    seen: set[str] = set()  # links may lead back to where they are
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return found


class JoinedRows:
    """Several streamed splits as one, with what readers use of a `datasets.IterableDataset`.

    Its shards are dealt out together. `datasets` itself would join the streams end to end, so that a reader would reach
    the second split only after the first.
    """

    def __init__(self, parts: list[Any]):
        self._parts = parts
        self.features = parts[0].features
        self.num_shards = sum(part.num_shards for part in parts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return chain.from_iterable(self._parts)

    def shard(self, num_shards: int, index: int):
        """Every num_shards-th shard from the index-th on, as one `datasets.IterableDataset`."""
        from datasets import concatenate_datasets

        shards = [(part, number) for part in self._parts for number in range(part.num_shards)]
        own = [part.shard(part.num_shards, number) for part, number in shards[index::num_shards]]
        return own[0] if len(own) == 1 else concatenate_datasets(own)

    def select_columns(self, columns: list[str]) -> "JoinedRows":
        return JoinedRows([part.select_columns(columns) for part in self._parts])

    def cast_column(self, column: str, feature: Any) -> "JoinedRows":
        return JoinedRows([part.cast_column(column, feature) for part in self._parts])

    def decode(self, enable: bool) -> "JoinedRows":
        return JoinedRows([part.decode(enable) for part in self._parts])
