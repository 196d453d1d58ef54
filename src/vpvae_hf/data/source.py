"""Data sets of images or audio from the `datasets` library, a hub id or a local path, as streams of undecoded files."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .audio_folder import audio_rows, audio_splits, is_audio_folder
from .cuts import Cut
from .files import UnreadableFileError
from .joined_rows import JoinedRows
from .shards import ShardReader, library_missing

# Of a data set that is not streamed; enough for the readers of a large job.
_LOCAL_SHARDS = 256
# Of audio in a folder; a shard's clips are encoded in batches of their own, so it should hold several.
_FILES_A_SHARD = 64
_FIRST_ROWS = 100


@dataclass(frozen=True)
class Source:
    """Rows of a data set, with files of one column still encoded, so that a corrupt one can be skipped.

    Attributes:
        name: hub id or local path.
        rows: a `datasets.IterableDataset`, or `JoinedRows` of several.
        column: that holds the files; in a row None, or a mapping of "bytes" and "path".
    """

    name: str
    rows: Any
    column: str


def open_images(
    name: str,
    *,
    split: str,
    config: str | None = None,
    revision: str | None = None,
    column: str | None = None,
    streaming: bool = True,
    other_columns: bool = False,
) -> Source:
    """Open a data set of images; its files are read when it is iterated.

    Args:
        name: hub id or local path, as `datasets.load_dataset` takes it.
        split: e.g. "train", or several joined by "+"; a slice such as "train[:1000]" where it is not streamed.
        config: name of a configuration (subset), for a data set that has several.
        revision: branch, tag or commit on the hub.
        column: that holds the images; found by its type where None.
        streaming: read it while it is used; otherwise it is downloaded and prepared first.
        other_columns: keep them in the rows.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: no such split or image column.
        FileNotFoundError: no such data set.
    """
    datasets = _import_datasets()
    rows = _load(name, split, config, revision, streaming)
    return _source(name, rows, column, datasets.Image(decode=False), "image", streaming, other_columns)


def open_audio(
    name: str,
    *,
    split: str,
    config: str | None = None,
    revision: str | None = None,
    column: str | None = None,
    streaming: bool = True,
    other_columns: bool = False,
) -> Source:
    """Open a data set of audio, or a local folder of audio files; they are read when it is iterated.

    A folder has the splits "train", "validation" and "test" where it has sub-folders of these names, otherwise all its
    files are the split "train". Its columns are "audio" and "file_name", the path within the folder; tables of
    transcripts or the like beside the files are not read.

    Args:
        name: hub id or local path, as `datasets.load_dataset` takes it, or a folder of WAV, FLAC, OGG or MP3 files.
        split, config, revision, streaming, other_columns: as of `open_images`.
        column: that holds the audio; found by its type where None.

    Raises:
        ImportError: `datasets` is not installed, or lacks torchcodec, which it takes for a data set of files that are
            neither local nor in Parquet.
        ValueError: no such split or audio column.
        FileNotFoundError: no such data set.
    """
    datasets = _import_datasets()
    if is_audio_folder(name):
        rows, streaming = _load_folder(name, split, config, revision, streaming), True
    else:
        rows = _load(name, split, config, revision, streaming)
    return _source(name, rows, column, datasets.Audio(decode=False), "audio", streaming, other_columns)


def check_readable(source: Source, cut: Cut) -> None:
    """Read the first rows, to find early what would stop a run later.

    Args:
        cut: that the run will use.

    Raises:
        ValueError: no row, no readable file among the first 100, a file that the cut does not allow, or a shard that
            cannot be read before a file is found.
        ImportError: reading takes a library that is not installed.
    """
    files_alone = source.rows.select_columns([source.column])
    errors = []
    for row in itertools.islice(ShardReader(files_alone, 0, 1, seed=None, passes=1), _FIRST_ROWS):
        try:
            cut.sample(row[source.column], np.random.default_rng(0))
            return
        except UnreadableFileError as error:
            errors.append(error)
    found = "it is empty"
    if errors:
        found = (
            f"the first {len(errors)} rows of column {source.column!r} hold no readable {cut.kind} "
            f"(the first: {errors[0]})"
        )
    raise ValueError(f"data set {source.name} cannot be used: {found}")


def _import_datasets():
    try:
        import datasets
    except ImportError as error:
        raise ImportError("datasets is missing; install it with: pip install 'vpvae_hf[train]'") from error
    return datasets


def _load(name: str, split: str, config: str | None, revision: str | None, streaming: bool):
    """Splits of what `datasets` can read."""
    import datasets

    _check_split(name, split, datasets.get_dataset_split_names(name, config, revision=revision), streaming)
    try:
        # A stream is of one split; otherwise `datasets` joins them.
        splits = split.split("+") if streaming else [split]
        parts = [
            datasets.load_dataset(name, config, split=part, revision=revision, streaming=streaming) for part in splits
        ]
        return parts[0] if len(parts) == 1 else JoinedRows(parts)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, ImportError):
            raise library_missing(error.__cause__) from error
        raise


def _load_folder(name: str, split: str, config: str | None, revision: str | None, streaming: bool):
    """Splits of a folder of audio files, as a stream in any case: nothing is to be prepared."""
    import datasets

    if config is not None or revision is not None:
        raise ValueError(f"{name} is a folder of audio files, which has no config or revision; leave them out")
    splits = audio_splits(Path(name))
    _check_split(name, split, list(splits), streaming)
    lengths = {part: len(files) for part, files in splits.items()}
    parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    files = [file for part in parts for file in splits[part.splitname][part.from_ : part.to]]
    shards = max(1, min(_LOCAL_SHARDS, len(files) // _FILES_A_SHARD))
    return audio_rows(Path(name), files).to_iterable_dataset(num_shards=shards)


def _check_split(name: str, split: str, splits: list[str], streaming: bool) -> None:
    for part in split.split("+"):
        whole, bracket, _ = part.partition("[")
        if whole not in splits:
            raise ValueError(f"data set {name} has no split {whole!r}; it has {', '.join(splits)}")
        if streaming and bracket:
            raise ValueError(f"a stream has no slices, got split {part!r}; name a whole split, or do without streaming")


def _source(name: str, rows, column: str | None, feature, kind: str, streaming: bool, other_columns: bool) -> Source:
    column = _column(name, column, rows.features or {}, type(feature), kind)
    rows = rows.cast_column(column, feature)
    rows = rows if other_columns else rows.select_columns([column])
    if not streaming:
        rows = rows.to_iterable_dataset(num_shards=max(1, min(_LOCAL_SHARDS, len(rows))))
    return Source(name, rows, column)


def _column(name: str, column: str | None, features: Mapping, feature_type: type, kind: str) -> str:
    found = [column for column, feature in features.items() if isinstance(feature, feature_type)]
    if column is None and len(found) == 1:
        return found[0]
    if column in found:
        return column
    asked = "name the one to use" if column is None else f"{column!r} is none of them"
    raise ValueError(
        f"data set {name} has {len(found)} {kind} columns ({', '.join(found) or 'none'}) among "
        f"{', '.join(features)}; {asked}"
    )
