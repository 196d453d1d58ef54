"""Streams of items of images or audio, split over ranks and loader workers, that resume where they stopped.

A reader is one loader worker of one rank. Shapes: B items in a batch; items and batches are as the stream's transform
makes them.
"""

import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from vpvae_hf.settings import require_integer
from vpvae_hf.unreadable import MOST_UNREADABLE, SkippedFiles, UnreadableFileError

from .sources import Source, Transform, library_missing

_log = logging.getLogger(__name__)
# A folder of a million files has a million shards, so shards are distributed in at most this many groups.
_MOST_GROUPS = 1024
# Files per thread in a block; at the end of a block, threads wait for each other.
_FILES_PER_THREAD = 4
_CHECKED_ROWS = 100
# Errors that a worker yields instead of raising them: torch would replace a raised error's message by a traceback.
_FAULTS = (ValueError, ImportError, OSError)
_BEGINNING = {"block": 0, "taken": 0, "block_start": None, "gave": False}


class ItemStream(IterableDataset):
    """One item of each file of a data set: a crop of an image, a segment of audio.

    The order and the items depend on the seed and on a file's place in the order, not on what was drawn before. Files
    are shuffled in blocks: a block is read, permuted and yielded before the next one. So a position is a few numbers,
    and to return to it, part of a block is read again.

    Args:
        source: opened by `open_images` or `open_audio`.
        transform: e.g. an `ImageCrop` or an `AudioSegment`.
        shuffle_buffer: files in a block, which memory holds in encoded form; 1 keeps the data set's own order.
        passes: number of passes over the data set; None for no end.
        seed: decides order and items.
        rank, world_size: this process's number, and how many processes there are. Their shares may differ in size.
        threads: how many threads decode in each process; the order does not depend on it.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        *,
        shuffle_buffer: int = 1,
        passes: int | None = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
    ):
        require_integer("shuffle_buffer", shuffle_buffer, 1)
        self.transform = transform
        self._source, self._shuffled, self._threads = source, shuffle_buffer > 1, threads
        self._block_size = shuffle_buffer if self._shuffled or threads == 1 else _FILES_PER_THREAD * threads
        self._passes, self._seed, self._rank, self._world_size = passes, seed, rank, world_size
        self._position, self._loaded = dict(_BEGINNING), False
        self._rows: Iterator | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Start from the beginning or, once after `load_state_dict`, from the loaded state.

        Even an endless stream ends if its reader's share has no readable file.

        Yields:
            "item"; "skipped", the reasons of the unreadable files just before it; and "passes", the number of passes
            over the reader's share so far. If a stream ends with unreadable files, the "item" of its last yield is
            None. A loader's worker does not raise errors that a user can fix but yields them as "error".

        Raises:
            ValueError: 1000 unreadable files in a row, or an error of the transform or of `ShardReader`.
        """
        if get_worker_info() is None:
            yield from self._items()
            return
        try:
            yield from self._items()
        except _FAULTS as error:
            kind = next(each for each in _FAULTS if isinstance(error, each))
            # Some subclasses cannot be sent to another process.
            yield {"error": kind(str(error))}

    def _items(self) -> Iterator[dict[str, Any]]:
        if not self._loaded:
            self._position = dict(_BEGINNING)
        at, self._loaded = self._position, False
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        number, count = self._rank * count + number, self._world_size * count
        seed = self._seed if self._shuffled else None
        reader = ShardReader(self._source.rows, number, count, seed=seed, passes=self._passes)
        if at["block_start"] is not None:
            reader.load_state_dict(at["block_start"])
        self._rows = rows = iter(reader)
        skipped: list[str] = []
        while True:
            at["block_start"] = reader.state_dict()
            files = [self._source.file(row[self._source.column]) for row in itertools.islice(rows, self._block_size)]
            if not files:
                if skipped:
                    yield {"item": None, "skipped": skipped, "passes": 1.0}
                self._position = dict(_BEGINNING)
                return
            if self._shuffled:
                files = [files[place] for place in self._rng(number, at["block"]).permutation(len(files))]
            left = range(at["taken"], len(files))
            read = ((files[place], self._rng(number, at["block"], place + 1)) for place in left)
            for item_of in self._read(read):
                at["taken"] += 1
                try:
                    item = item_of()
                except UnreadableFileError as error:
                    skipped.append(str(error))
                    # Otherwise an endless stream would search for ever, e.g. if the network is gone.
                    small = reader.share is not None and reader.share <= MOST_UNREADABLE
                    may_end = self._passes is None and small and not at["gave"]
                    if len(skipped) >= MOST_UNREADABLE and not may_end:
                        kinds, column = f"{self.transform.kind}s", self._source.column
                        found = f"data set {self._source.name}: {len(skipped)} {kinds}"
                        raise ValueError(
                            f"{found} in a row cannot be read; see whether the "
                            f"files of column {column!r} are {kinds} and can be reached (the last: {error})"
                        ) from error
                    continue
                at["gave"] = True
                taken = at["block"] * self._block_size + at["taken"]
                yield {"item": item, "skipped": skipped, "passes": taken / reader.share if reader.share else 0.0}
                skipped = []
            at |= {"block": at["block"] + 1, "taken": 0}
            seen_all = reader.share is not None and at["block"] * self._block_size >= reader.share
            if self._passes is None and seen_all and not at["gave"]:
                yield {"item": None, "skipped": skipped, "passes": 0.0}
                return

    def _read(self, files: Iterable[tuple[Any, np.random.Generator]]) -> Iterator[Callable[[], Tensor]]:
        """For each file, a function that returns its item or raises the reason why there is none."""
        if self._threads == 1:
            yield from (partial(self.transform.read, *file) for file in files)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            yield from [pool.submit(self.transform.read, *file).result for file in files]

    def state_dict(self) -> dict[str, Any]:
        """This reader's position."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next iteration from that position."""
        # Older states do not say whether their reader has given anything; it has.
        self._position, self._loaded = {"gave": True, **state}, True

    def close(self) -> None:
        """Close the files of an iteration that was broken off; the position does not change."""
        if self._rows is not None:
            self._rows.close()

    def _rng(self, *place: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *place])


class ItemLoader:
    """Batches of an `ItemStream` as a model takes them, decoded by worker processes; its position can be saved.

    Batches travel to the device in the items' form, e.g. as uint8, which is smaller than what a model takes.

    Args:
        stream: the items of one rank.
        batch_size: B.
        workers: number of worker processes; 0 for none.
        device: where batches go. They are copied to a CUDA device while it computes.

    Attributes:
        skipped: number of unreadable files so far; it is logged with the first reasons, once there is one and when an
            iteration ends.
        passes: how many passes over the data the batches so far amount to; 0 within the first pass.
    """

    def __init__(self, stream: ItemStream, *, batch_size: int, workers: int = 0, device: str | torch.device = "cpu"):
        self._stream, self._batch_size, self._workers = stream, batch_size, workers
        self._device = torch.device(device)
        self._loader: Any = None
        # Where the next iteration starts, and where the last one was left.
        self._resumed: dict[str, Any] | None = None
        self._left_at: dict[str, Any] | None = None
        what = f"{stream.transform.kind}s of {stream._source.name}"
        self._unreadable = SkippedFiles(what, repeatedly=stream._passes is None)
        self.passes = 0.0

    @property
    def skipped(self) -> int:
        return self._unreadable.count

    def __iter__(self) -> Iterator[Tensor | dict[str, Tensor]]:
        """What the transform's `model_input` gives, on the device; the last batch of a finite stream may be smaller.

        Raises:
            ValueError: see `ItemStream`, or an endless stream's rank has no readable file.
        """
        self._loader, resumed, self._resumed = self._new_loader(), self._resumed, None
        if resumed is not None:
            self._loader.load_state_dict(resumed)
        try:
            for batch, skipped, passes in self._loader:
                if isinstance(batch, Exception):
                    raise batch
                known = self.skipped
                self._unreadable.add(skipped, len(skipped))
                if not known:
                    self._unreadable.tell()
                self.passes = max(self.passes, passes)
                if batch is not None:
                    yield self._stream.transform.model_input(batch.to(self._device, non_blocking=self._pins))
            if self._stream._passes is None:
                raise ValueError(self._nothing_to_read())
        finally:
            # At once: workers that the garbage collector finds later may hold it up for seconds, and files still open
            # when Python exits can abort it.
            self._left_at, self._loader = self._loader.state_dict(), None
            self._stream.close()
            self._unreadable.tell()

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was given."""
        loader = self._left_at if self._loader is None else self._loader.state_dict()
        return {"loader": loader, **self._unreadable.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next iteration from a saved position, with as many workers and ranks as when it was saved."""
        self._resumed = state["loader"]
        self._unreadable.load_state_dict(state)

    @property
    def _pins(self) -> bool:
        """Whether batches lie in pinned memory: only copies from there are asynchronous."""
        return self._device.type == "cuda"

    def _nothing_to_read(self) -> str:
        stream, reasons = self._stream, self._unreadable.reasons
        found = f"can be read (the first: {reasons[0]})" if reasons else "is available"
        return (
            f"none of the {stream.transform.kind}s of {stream._source.name} {found} for rank {stream._rank} of "
            f"{stream._world_size}; use fewer ranks, or more data"
        )

    def _new_loader(self):
        from torchdata.stateful_dataloader import StatefulDataLoader

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata's own call
            return StatefulDataLoader(
                self._stream,
                batch_size=self._batch_size,
                num_workers=self._workers,
                pin_memory=self._pins,
                collate_fn=partial(_collate, self._stream.transform.collate),
                # A generator of its own: making an iterator draws from it, and training's randomness must not depend on
                # that.
                generator=torch.Generator().manual_seed(0),
            )


def _collate(
    collate: Callable[[list[Tensor]], Tensor], yielded: list[dict[str, Any]]
) -> tuple[Tensor | Exception | None, list[str], float]:
    """A batch in the items' form, the reasons of unreadable files, and the number of passes. In place of the batch it
    returns None if there is no item, or a worker's error.
    """
    if "error" in yielded[-1]:
        return yielded[-1]["error"], [], 0.0
    items = [each["item"] for each in yielded if each["item"] is not None]
    skipped = [reason for each in yielded for reason in each["skipped"]]
    return collate(items) if items else None, skipped, yielded[-1]["passes"]


def check_readable(source: Source, transform: Transform, remedy: str = "") -> None:
    """Read the first rows as a run will, to find problems early: raise a ValueError if none of the first 100 files is
    readable, if the transform does not allow one, or if a shard cannot be read.

    Args:
        remedy: the end of the message if there is no readable file.
    """
    files_only = source.rows.select_columns([source.column])
    errors = []
    for row in itertools.islice(ShardReader(files_only, 0, 1, seed=None, passes=1), _CHECKED_ROWS):
        file = source.file(row[source.column])
        if not errors and _is_address(file):
            _log.warning(
                f"column {source.column!r} of {source.name} holds addresses, and each reader fetches one file at a "
                "time; to read many, or more than once, download them into shards first, e.g. with img2dataset"
            )
        try:
            transform.read(file, np.random.default_rng(0))
            return
        except UnreadableFileError as error:
            errors.append(error)
    where = f"the first {len(errors)} rows of column {source.column!r}"
    found = f"{where} hold no readable {transform.kind} (the first: {errors[0]}){remedy}" if errors else "it is empty"
    raise ValueError(f"data set {source.name} cannot be used: {found}")


def _is_address(file: Any) -> bool:
    """Whether a file is to be fetched from the web."""
    is_elsewhere = isinstance(file, Mapping) and file["bytes"] is None
    return is_elsewhere and (file["path"] or "").startswith(("http://", "https://"))


def shard_groups(rows, readers: int = 1) -> int:
    """The number of groups in which shards are distributed: as many as there are shards, up to a limit."""
    return min(rows.num_shards, max(_MOST_GROUPS, readers))


class ShardReader:
    """Rows of one reader's share of the shards, pass after pass; the reader's position is a small dictionary.

    Each group of shards belongs to one of the readers. If there are fewer groups than readers, several readers share a
    group and take its rows in turn, so shares may differ in size. The seed gives each pass its own order of groups;
    None keeps the data set's own order. With passes=None there is no end.

    Attributes:
        share: rows in a pass; None until the first pass has ended.
    """

    def __init__(self, rows, reader: int, readers: int, *, seed: int | None, passes: int | None):
        self._rows, self._seed, self._passes = rows, seed, passes
        self._groups = shard_groups(rows, readers)
        self._own = list(range(reader % self._groups, self._groups, readers))
        self._sharing, self._turn = len(range(reader % self._groups, readers, self._groups)), reader // self._groups
        # The pass, the group within it, rows seen of the group, and rows given in the pass.
        self._pass = self._position = self._seen = self._given = 0
        self._group: Any = None
        self._group_state: dict | None = None
        self.share: int | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows from the reader's position on; an endless reader ends if its share is empty. If a shard cannot be read,
        this raises a ValueError.
        """
        while self._passes is None or self._pass < self._passes:
            order = self._own
            if self._seed is not None:
                order = np.random.default_rng([self._seed, self._pass]).permutation(order)
            while self._position < len(order):
                yield from self._rows_of(int(order[self._position]))
                self._position += 1
                self._seen, self._group, self._group_state = 0, None, None
            if self._passes is None and self._given == 0:
                return
            self.share = self._given
            self._pass, self._position, self._given = self._pass + 1, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The position after the last row that was given."""
        group = self._group_state if self._group is None else self._group.state_dict()
        place = {"pass": self._pass, "position": self._position}
        return {**place, "seen": self._seen, "given": self._given, "group": group}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        names = ("pass", "position", "seen", "given", "group")
        self._pass, self._position, self._seen, self._given, self._group_state = (state[name] for name in names)

    def _rows_of(self, group: int) -> Iterator[dict[str, Any]]:
        self._group = self._rows.shard(num_shards=self._groups, index=group)
        if self._group_state is not None:
            self._group.load_state_dict(self._group_state)
        # Not iter(): within a loader's worker that would split the share among the workers once more.
        rows = self._group.iter(batch_size=1)
        while True:
            try:
                row = next(rows, None)
            except ImportError as error:
                raise library_missing(error) from error
            except Exception as error:
                raise ValueError(
                    f"part {group} of {self._groups} of the data set cannot be read after row {self._seen}: {error}; "
                    "repair or remove the file"
                ) from error
            if row is None:
                return
            self._seen += 1
            if (self._seen - 1) % self._sharing == self._turn:
                self._given += 1
                yield {column: values[0] for column, values in row.items()}
