"""A data set of images from the `datasets` library: a hub id or a local path, as a stream of undecoded files."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .decoding import decode_image
from .shards import ShardReader

# Of a data set that is not streamed; enough for the readers of a large job.
_LOCAL_SHARDS = 256
_FIRST_ROWS = 100


@dataclass(frozen=True)
class ImageSource:
    """Rows of a data set, with files of one column still encoded, so that a corrupt one can be skipped.

    Attributes:
        name: hub id or local path.
        rows: a `datasets.IterableDataset`.
        column: that holds the images; in a row None, or a mapping of "bytes" and "path".
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
) -> ImageSource:
    """Open a data set; its files are read when it is iterated.

    Args:
        name: hub id or local path, as `datasets.load_dataset` takes it.
        split: e.g. "train"; a slice such as "train[:1000]" where it is not streamed.
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
    try:
        import datasets
    except ImportError as error:
        raise ImportError("datasets is missing; install it with: pip install 'vpvae_hf[train]'") from error
    splits = datasets.get_dataset_split_names(name, config, revision=revision)
    whole, bracket, _ = split.partition("[")
    if whole not in splits:
        raise ValueError(f"data set {name} has no split {split!r}; it has {', '.join(splits)}")
    if streaming and bracket:
        raise ValueError(f"a stream has no slices, got split {split!r}; name a whole split, or do without streaming")
    rows = datasets.load_dataset(name, config, split=split, revision=revision, streaming=streaming)
    column = _image_column(name, column, rows.features or {}, datasets.Image)
    rows = rows.cast_column(column, datasets.Image(decode=False))
    rows = rows if other_columns else rows.select_columns([column])
    if not streaming:
        rows = rows.to_iterable_dataset(num_shards=max(1, min(_LOCAL_SHARDS, len(rows))))
    return ImageSource(name, rows, column)


def check_readable(source: ImageSource) -> None:
    """Read the first rows, to find early what would stop a run later.

    Raises:
        ValueError: no row, no readable image among the first 100, or a shard that cannot be read before one is found.
    """
    images_alone = source.rows.select_columns([source.column])
    rows = 0
    for row in itertools.islice(ShardReader(images_alone, 0, 1, seed=None, passes=1), _FIRST_ROWS):
        if decode_image(row[source.column]) is not None:
            return
        rows += 1
    held = f"the first {rows} rows of column {source.column!r} hold no readable image" if rows else "it is empty"
    raise ValueError(f"data set {source.name} cannot be used: {held}")


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
