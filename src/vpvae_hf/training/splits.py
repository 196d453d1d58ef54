"""The data sets of a run, as batches for training, fitting and validation."""

from collections.abc import Iterator

from accelerate import Accelerator
from torch import Tensor

from vpvae_hf import distributed
from vpvae_hf.data import ImageLoader, ImageStream, check_readable, open_images

from .config import DataConfig, TrainingConfig


class TrainingData:
    """The data sets of a run, this rank's part of them."""

    def __init__(self, config: DataConfig, run: TrainingConfig, accelerator: Accelerator):
        self._config, self._batch_size, self._seed = config, run.train_batch_size, run.seed
        self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        common = {"config": config.config, "revision": config.revision, "streaming": config.streaming}
        with distributed.failing_together():
            self._train = open_images(config.name, split=config.split, column=config.column, **common)
            check_readable(self._train)
            self._held_out = None
            if config.validation_split is not None:
                elsewhere = config.validation_name not in (None, config.name)
                where = {"streaming": config.streaming} if elsewhere else {**common, "column": config.column}
                name = config.validation_name or config.name
                self._held_out = open_images(name, split=config.validation_split, **where)
                check_readable(self._held_out)

    @property
    def validates(self) -> bool:
        return self._held_out is not None

    def training(self) -> ImageLoader:
        """Endless and shuffled."""
        return self._training_crops(self._seed, passes=None)

    def fitting(self) -> ImageLoader:
        """A fresh pass, in another order; random crops differ in each pass, so there are as many as are wanted."""
        return self._training_crops(self._seed + 1, passes=None if self._config.crop == "random" else 1)

    def held_out(self, limit: int | None) -> Iterator[Tensor]:
        """Batches of centre crops, at most `limit` images on all ranks."""
        config = self._config
        size = config.validation_size or config.size
        side = None if config.shortest_side is None else max(config.shortest_side, size)
        part = {"rank": self._rank, "world_size": self._world_size}
        loader = ImageLoader(
            ImageStream(self._held_out, size=size, shortest_side=side, **part),
            batch_size=self._batch_size,
            workers=min(1, config.workers),
        )
        left = None if limit is None else len(range(self._rank, limit, self._world_size))
        for batch in loader:
            yield batch[:left]
            left = None if left is None else left - len(batch)
            if left is not None and left <= 0:
                return

    def _training_crops(self, seed: int, passes: int | None) -> ImageLoader:
        config = self._config
        stream = ImageStream(
            self._train,
            size=config.size,
            shortest_side=config.shortest_side,
            crop=config.crop,
            flip=config.flip,
            shuffle_buffer=config.shuffle_buffer,
            passes=passes,
            seed=seed,
            rank=self._rank,
            world_size=self._world_size,
        )
        return ImageLoader(stream, batch_size=self._batch_size, workers=config.workers)
