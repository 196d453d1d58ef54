"""Streams of samples of images or audio, split over ranks and loader workers, that resume where they stopped.

Shapes: B samples of a batch; a sample and a batch are as the stream's cut makes them.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .cuts import Cut
from .files import UnreadableFileError
from .shards import ShardReader
from .source import Source

_MOST_UNREADABLE = 1000
_BEGINNING = {"block": 0, "taken": 0, "block_start": None}


class SampleStream(IterableDataset):
    """One sample of each file of a data set: a crop of an image, a segment of audio.

    The order depends on the seed alone, and so does each sample: on where its file comes, not on what was drawn before.
    Files are shuffled in blocks: a block is read, permuted and given, then comes the next. So a position is a few
    numbers, and going back to one costs the reading of part of a block.

    Args:
        source: opened by `open_images` or `open_audio`.
        cut: an `ImageCrop`, or an `AudioSegment` or `AudioClip`.
        shuffle_buffer: files in a block, which is held in memory as encoded; 1 for the data set's own order.
        passes: over the data set; None for no end.
        seed: of order and samples.
        rank, world_size: this process and how many there are. Shares may differ in size.

    Raises:
        ValueError: a buffer below 1.
    """

    def __init__(
        self,
        source: Source,
        cut: Cut,
        *,
        shuffle_buffer: int = 1,
        passes: int | None = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer must be at least 1, got {shuffle_buffer}")
        self.cut = cut
        self._source, self._block_size = source, shuffle_buffer
        self._passes, self._seed, self._rank, self._world_size = passes, seed, rank, world_size
        self._loaded = False
        self._rows: Iterator | None = None
        self._stand_at(_BEGINNING)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """From the beginning, or once from a loaded state.

        Yields:
            "sample", and "skipped", the unreadable files just before it. Where a finite stream ends with unreadable
            ones, a last item has None for its sample.

        Raises:
            ValueError: 1000 unreadable files in a row, or see the cut and `ShardReader`.
        """
        if not self._loaded:
            self._stand_at(_BEGINNING)
        self._loaded = False
        number, count = self._reader_of()
        shuffled = self._block_size > 1
        seed = self._seed if shuffled else None
        reader = ShardReader(self._source.rows, number, count, seed=seed, passes=self._passes)
        if self._block_start is not None:
            reader.load_state_dict(self._block_start)
        self._rows = rows = iter(reader)
        skipped = 0
        while True:
            self._block_start = reader.state_dict()
            files = [row[self._source.column] for row in itertools.islice(rows, self._block_size)]
            if not files:
                if skipped:
                    yield {"sample": None, "skipped": skipped}
                self._stand_at(_BEGINNING)
                return
            order = self._rng(number, self._block).permutation(len(files)) if shuffled else range(len(files))
            for place in order[self._taken :]:
                self._taken += 1
                try:
                    sample = self.cut.sample(files[place], self._rng(number, self._block, self._taken))
                except UnreadableFileError as error:
                    skipped += 1
                    self._check_skipped(skipped, error)
                    continue
                yield {"sample": sample, "skipped": skipped}
                skipped = 0
            self._block, self._taken = self._block + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Where this reader stands."""
        return {"block": self._block, "taken": self._taken, "block_start": self._block_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there at the next iteration."""
        self._stand_at(state)
        self._loaded = True

    def close(self) -> None:
        """Close the files of an iteration that was broken off; where it stands does not change."""
        if self._rows is not None:
            self._rows.close()

    def _stand_at(self, state: dict[str, Any]) -> None:
        self._block, self._taken, self._block_start = state["block"], state["taken"], state["block_start"]

    def _reader_of(self) -> tuple[int, int]:
        """Number of this reader, and how many there are."""
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return self._rank * count + number, self._world_size * count

    def _check_skipped(self, skipped: int, error: UnreadableFileError) -> None:
        # An endless stream would search for ever, as where the network is gone.
        if skipped == _MOST_UNREADABLE:
            raise ValueError(
                f"data set {self._source.name}: {skipped} {self.cut.kind}s in a row cannot be read; see whether the "
                f"files of column {self._source.column!r} are {self.cut.kind}s and can be reached (the last: {error})"
            )

    def _rng(self, *place: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *place])


class SampleLoader:
    """Batches of a `SampleStream` as a model takes them, decoded by worker processes; its position can be saved.

    Args:
        stream: of one rank.
        batch_size: B.
        workers: processes; 0 for none.

    Attributes:
        skipped: unreadable files so far.
    """

    def __init__(self, stream: SampleStream, *, batch_size: int, workers: int = 0):
        self._stream, self._batch_size, self._workers = stream, batch_size, workers
        self._loader: Any = None
        # To start from, and where the last iteration was left.
        self._resumed: dict[str, Any] | None = None
        self._left_at: dict[str, Any] | None = None
        self.skipped = 0

    def __iter__(self) -> Iterator[Tensor]:
        """[B, 3, S, S] or [B, 1, S] float32 in [-1, 1]; the last batch of a finite stream may be smaller."""
        self._loader, resumed, self._resumed = self._new_loader(), self._resumed, None
        if resumed is not None:
            self._loader.load_state_dict(resumed)
        try:
            for batch, skipped in self._loader:
                self.skipped += skipped
                if batch is not None:
                    yield self._stream.cut.model_input(batch)
        finally:
            # At once: workers that the garbage collector finds later may hold it up for seconds, and files still open
            # when Python exits can abort it.
            self._left_at, self._loader = self._loader.state_dict(), None
            self._stream.close()

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was given."""
        loader = self._left_at if self._loader is None else self._loader.state_dict()
        return {"loader": loader, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there at the next iteration; with the workers and ranks of the run that saved it."""
        self._resumed, self.skipped = state["loader"], state["skipped"]

    def _new_loader(self):
        from torchdata.stateful_dataloader import StatefulDataLoader

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata's own call
            return StatefulDataLoader(
                self._stream,
                batch_size=self._batch_size,
                num_workers=self._workers,
                collate_fn=partial(_collated, self._stream.cut.collate),
                # Its own: making an iterator draws from it, and training's randomness must not depend on that.
                generator=torch.Generator().manual_seed(0),
            )


def _collated(collate: Callable[[list[Tensor]], Tensor], items: list[dict[str, Any]]) -> tuple[Tensor | None, int]:
    """A batch in the samples' form, None where there is no sample, and the unreadable files."""
    samples = [item["sample"] for item in items if item["sample"] is not None]
    return collate(samples) if samples else None, sum(item["skipped"] for item in items)
