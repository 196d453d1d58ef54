"""The data sets of a run, as batches for training, fitting and validation."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor

from vpvae_hf import distributed
from vpvae_hf.data import ItemLoader, ItemStream, Transform, check_readable

from .config import TrainingConfig
from .modality import Modality


class TrainingData:
    """The data sets of a run, this rank's part of them."""

    def __init__(self, modality: Modality, model, config: TrainingConfig, accelerator: Accelerator):
        self._config, self._modality, self._model = config, modality, model
        self._part = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        self._training_cut = modality.training_cut(config, model)
        self._held_out_cut = modality.held_out_cut(config, model)
        data = config.data
        common = {"config": data.config, "revision": data.revision, "streaming": data.streaming}
        with distributed.failing_together():
            self._train = modality.open(data.name, split=data.split, column=data.column, **common)
            check_readable(self._train, self._training_cut)
            self._held_out = None
            if data.validation_split is not None:
                elsewhere = data.validation_name not in (None, data.name)
                where = {**common, "column": data.column}
                if elsewhere:
                    where = {"streaming": data.streaming, "config": data.validation_config}
                    where |= {"column": data.validation_column}
                name = data.validation_name or data.name
                self._held_out = modality.open(name, split=data.validation_split, **where)
                check_readable(self._held_out, self._held_out_cut)

    @property
    def validates(self) -> bool:
        return self._held_out is not None

    def training(self) -> ItemLoader:
        """Endless and shuffled."""
        return self._shuffled(self._training_cut, self._config.seed, passes=None)

    def fitting(self, *, once: bool = False) -> ItemLoader:
        """A fresh pass, in another order; where cuts differ in each pass, as many as are wanted, unless `once`."""
        cut = self._modality.fitting_cut(self._config, self._model)
        passes = None if self._modality.varies(self._config) and not once else 1
        return self._shuffled(cut, self._config.seed + 1, passes=passes)

    def held_out(self, limit: int | None) -> Iterator[Tensor]:
        """Batches to measure, at most `limit` examples on all ranks."""
        part = self._part
        left = None if limit is None else len(range(part["rank"], limit, part["world_size"]))
        return self._first(self._held_out_cut, self._modality.held_out_batch_size(self._config), left)

    def shown(self, count: int) -> Tensor:
        """The first held-out examples of this rank, [at most `count`, ...], all of one size."""
        return torch.cat(list(self._first(self._modality.shown_cut(self._config, self._model), 1, count)))

    def _first(self, cut: Transform, batch_size: int, left: int | None) -> Iterator[Tensor]:
        """Batches in order, until none is left."""
        workers = min(1, self._config.data.workers)
        loader = ItemLoader(ItemStream(self._held_out, cut, **self._part), batch_size=batch_size, workers=workers)
        for batch in loader:
            yield batch[:left]
            left = None if left is None else left - len(batch)
            if left is not None and left <= 0:
                return

    def _shuffled(self, cut: Transform, seed: int, passes: int | None) -> ItemLoader:
        data = self._config.data
        stream = ItemStream(
            self._train,
            cut,
            shuffle_buffer=data.shuffle_buffer,
            passes=passes,
            seed=seed,
            **self._part,
        )
        return ItemLoader(stream, batch_size=self._config.train_batch_size, workers=data.workers)
