"""The data sets that a `DataConfig` names, as batches for training, fitting, measuring and looking at."""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from vpvae_hf import distributed
from vpvae_hf.data import ItemLoader, ItemStream, Source, Transform
from vpvae_hf.models.tokenizer import Tokenizer

from .base import Modality
from .config import DataConfig


class Batches:
    """Batches of this rank's part of a training and a validation split, which are opened when they are first needed.

    The batches are on the model's device.

    Args:
        data: names the splits; no validation split if its `validation_split` is None.
        batch_size: items in a batch; 1 in evaluations if the modality measures one by one.
        rank, world_size: this process, and how many there are.
    """

    def __init__(
        self,
        modality: Modality,
        model: Tokenizer,
        data: DataConfig,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self._modality, self._model, self._data, self._batch_size = modality, model, data, batch_size
        self._part = {"rank": rank, "world_size": world_size}

    @property
    def validates(self) -> bool:
        """Whether there is a validation split."""
        return self._data.validation_split is not None

    def open(self) -> None:
        """Open both splits now, as `Modality.open` does. Every rank of a job must call this; if one fails, all do."""
        with distributed.failing_together():
            _ = self._train, self._held_out

    def training(self, seed: int) -> ItemLoader:
        """Endless shuffled batches for training."""
        return self._shuffled(self._modality.train_transform(self._data, self._model), seed, passes=None)

    def fitting(self, seed: int, *, once: bool = False) -> ItemLoader:
        """Shuffled batches for fitting a codebook: endless if each pass gives other items, unless `once`."""
        passes = None if self._modality.is_random(self._data) and not once else 1
        return self._shuffled(self._modality.fit_transform(self._data, self._model), seed, passes=passes)

    def evaluation(self, limit: int | None = None) -> Iterator[Tensor]:
        """Batches to measure, at most `limit` items on all ranks together."""
        left = None if limit is None else len(range(self._part["rank"], limit, self._part["world_size"]))
        transform = self._modality.eval_transform(self._data, self._model)
        return self._first(transform, 1 if self._modality.one_by_one else self._batch_size, left)

    def evaluation_length(self, limit: int | None = None) -> int | None:
        """How many items `evaluation` has on all ranks together, if it is known and all can be read."""
        return min((count for count in (limit, self._held_out.length) if count is not None), default=None)

    def shown(self, count: int) -> Tensor:
        """The first validation items of this rank, [at most `count`, ...], all of one size."""
        return torch.cat(list(self._first(self._modality.shown_transform(self._data, self._model), 1, count)))

    @cached_property
    def _train(self) -> Source:
        return self._open(self._data, self._modality.train_transform(self._data, self._model))

    @cached_property
    def _held_out(self) -> Source | None:
        if not self.validates:
            return None
        return self._open(self._data.validation, self._modality.eval_transform(self._data, self._model))

    def _open(self, data: DataConfig, transform: Transform) -> Source:
        share = data.share_set_aside if self._modality.takes_validation_share else 0.0
        return self._modality.open(data, transform, validation_share=share)

    def _first(self, transform: Transform, batch_size: int, left: int | None) -> Iterator[Tensor]:
        """Batches in order, of at most `left` items in all; all batches for None."""
        workers = self._data.loader_workers
        # Threads of one process keep the order. Whole clips, which may be long, take longer to measure than to decode.
        threads = 1 if self._modality.one_by_one else max(1, workers)
        stream = ItemStream(self._held_out, transform, **self._part, threads=threads)
        for batch in self._loader(stream, batch_size, min(1, workers)):
            yield batch[:left]
            left = None if left is None else left - len(batch)
            if left is not None and left <= 0:
                return

    def _shuffled(self, transform: Transform, seed: int, passes: int | None) -> ItemLoader:
        how = {"shuffle_buffer": self._data.shuffle_buffer, "passes": passes, "seed": seed}
        stream = ItemStream(self._train, transform, **how, **self._part)
        return self._loader(stream, self._batch_size, self._data.loader_workers)

    def _loader(self, stream: ItemStream, batch_size: int, workers: int) -> ItemLoader:
        device = next(self._model.parameters()).device
        return ItemLoader(stream, batch_size=batch_size, workers=workers, device=device)
