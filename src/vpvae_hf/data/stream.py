"""Streams of square crops, split over ranks and loader workers, that resume where they stopped.

Shapes: S the side of a crop in pixels, B images.
"""

import itertools
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .crops import center_crop, maybe_mirrored, random_crop, to_pixel_values
from .decoding import decode_image, scaled
from .shards import ShardReader
from .source import ImageSource

_MOST_UNREADABLE = 1000
_BEGINNING = {"block": 0, "taken": 0, "block_start": None}


class ImageStream(IterableDataset):
    """Crops [S, S, 3] uint8 of the images of a data set.

    The order depends on the seed alone, and so does each crop: on where its image comes, not on what was drawn before.
    Images are shuffled in blocks: a block is read, permuted and given, then comes the next. So a position is a few
    numbers, and going back to one costs the reading of part of a block.

    Args:
        source: opened by `open_images`.
        size: S.
        shortest_side: images are scaled to it; where None, only those smaller than S are, to S.
        crop: "random", or "center".
        flip: mirror half of the images.
        shuffle_buffer: images in a block; 1 for the data set's own order.
        passes: over the data set; None for no end.
        seed: of order and crops.
        rank, world_size: this process and how many there are. Shares may differ in size.

    Raises:
        ValueError: a size or buffer below 1, or a shortest side below the size.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        size: int,
        shortest_side: int | None = None,
        crop: Literal["random", "center"] = "center",
        flip: bool = False,
        shuffle_buffer: int = 1,
        passes: int | None = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        for name, value in (("size", size), ("shuffle_buffer", shuffle_buffer)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if shortest_side is not None and shortest_side < size:
            raise ValueError(f"shortest_side must be at least the size of a crop, {size}, got {shortest_side}")
        self._source, self._size, self._shortest_side = source, size, shortest_side
        self._crop, self._flip, self._block_size = crop, flip, shuffle_buffer
        self._passes, self._seed, self._rank, self._world_size = passes, seed, rank, world_size
        self._loaded = False
        self._rows: Iterator | None = None
        self._stand_at(_BEGINNING)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """From the beginning, or once from a loaded state.

        Yields:
            "image" [S, S, 3] uint8, and "skipped", the unreadable ones just before it. Where a finite stream ends with
            unreadable ones, a last item has None for its image.

        Raises:
            ValueError: 1000 unreadable images in a row, or see `ShardReader`.
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
                    yield {"image": None, "skipped": skipped}
                self._stand_at(_BEGINNING)
                return
            order = self._rng(number, self._block).permutation(len(files)) if shuffled else range(len(files))
            for place in order[self._taken :]:
                self._taken += 1
                image = decode_image(files[place])
                if image is None:
                    skipped += 1
                    self._check_skipped(skipped)
                    continue
                yield {"image": self._cropped(image, number), "skipped": skipped}
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

    def _check_skipped(self, skipped: int) -> None:
        # An endless stream would search for ever, as where the network is gone.
        if skipped == _MOST_UNREADABLE:
            raise ValueError(
                f"data set {self._source.name}: {skipped} images in a row cannot be read; see whether the files of "
                f"column {self._source.column!r} are images and can be reached"
            )

    def _rng(self, *place: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *place])

    def _cropped(self, image: np.ndarray, number: int) -> Tensor:
        if self._shortest_side is not None or min(image.shape[:2]) < self._size:
            image = scaled(image, self._shortest_side or self._size)
        rng = self._rng(number, self._block, self._taken)
        crop = center_crop(image, self._size) if self._crop == "center" else random_crop(image, self._size, rng)
        crop = maybe_mirrored(crop, rng) if self._flip else crop
        # A copy: Pillow's arrays are read-only, and a mirrored view has a stride that torch does not know.
        return torch.from_numpy(crop.copy())


class ImageLoader:
    """Batches of an `ImageStream` as pixel values, decoded by worker processes; its position can be saved.

    Args:
        stream: of one rank.
        batch_size: B.
        workers: processes; 0 for none.

    Attributes:
        skipped: unreadable images so far.
    """

    def __init__(self, stream: ImageStream, *, batch_size: int, workers: int = 0):
        self._stream, self._batch_size, self._workers = stream, batch_size, workers
        self._loader: Any = None
        # To start from, and where the last iteration was left.
        self._resumed: dict[str, Any] | None = None
        self._left_at: dict[str, Any] | None = None
        self.skipped = 0

    def __iter__(self) -> Iterator[Tensor]:
        """[B, 3, S, S] float32 in [-1, 1]; the last batch of a finite stream may be smaller."""
        self._loader, resumed, self._resumed = self._new_loader(), self._resumed, None
        if resumed is not None:
            self._loader.load_state_dict(resumed)
        try:
            for images, skipped in self._loader:
                self.skipped += skipped
                if images is not None:
                    yield to_pixel_values(images)
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
                collate_fn=_collated,
                # Its own: making an iterator draws from it, and training's randomness must not depend on that.
                generator=torch.Generator().manual_seed(0),
            )


def _collated(items: list[dict[str, Any]]) -> tuple[Tensor | None, int]:
    """[B, S, S, 3] uint8, None where there is no image, and the unreadable ones."""
    images = [item["image"] for item in items if item["image"] is not None]
    return torch.stack(images) if images else None, sum(item["skipped"] for item in items)
