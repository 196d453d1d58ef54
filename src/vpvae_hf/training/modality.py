"""What differs between training a tokenizer of images and one of audio."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from vpvae_hf.data import Source, Transform
from vpvae_hf.losses import Loss
from vpvae_hf.metrics import MetricFn, ReconstructionQuality

from .config import AdversarialConfig, ModelConfig, TrainingConfig


class Modality(ABC):
    """What a run asks of the kind of signal that it is about.

    Attributes:
        examples: what training examples are called.
        measured: what is measured one by one.
        open: `open_images` or `open_audio`.
        library: whose version matters to the model, beside torch.
        unquantized: figures of quality that are also measured without quantization; None for all.
    """

    examples: ClassVar[str]
    measured: ClassVar[str]
    library: ClassVar[str]
    unquantized: ClassVar[tuple[str, ...] | None]
    open: ClassVar[Callable[..., Source]]

    def build_model(self, config: TrainingConfig):
        """A new model, or one that goes on from a saved tokenizer.

        Where one is gone on from, quantizer settings without a kind change the present ones; empty, or where only the
        decoder is trained, they leave them.

        Raises:
            ValueError: invalid settings, or a start that cannot be loaded.
        """
        if config.model.pretrained is None:
            return self._new_model(config)
        model = self.load(config.model.pretrained, **places(config.model))
        if config.train_only is not None:
            return model
        present = model.quantize.config.to_dict()
        wanted = dict(config.quantizer) if "kind" in config.quantizer else {**present, **config.quantizer}
        if wanted != present:
            wanted.pop("fitted", None)
            model.set_quantizer(wanted)
        return model

    @abstractmethod
    def _new_model(self, config: TrainingConfig): ...

    @abstractmethod
    def load(self, name: str, **places: str):
        """A saved tokenizer, from a folder or a hub id."""

    @abstractmethod
    def losses(self, config: TrainingConfig, model) -> Mapping[str, Loss]:
        """The weighted losses by name."""

    def adversarial(self, config: TrainingConfig) -> AdversarialConfig | None:
        """Settings of a discriminator; None for none."""
        return None

    @abstractmethod
    def training_cut(self, config: TrainingConfig, model) -> Transform:
        """What is trained on."""

    def fitting_cut(self, config: TrainingConfig, model) -> Transform:
        """What the codebook is fitted to."""
        return self.training_cut(config, model)

    @abstractmethod
    def held_out_cut(self, config: TrainingConfig, model) -> Transform:
        """What is measured."""

    @abstractmethod
    def shown_cut(self, config: TrainingConfig, model) -> Transform:
        """What is shown, of one size."""

    @abstractmethod
    def held_out_batch_size(self, config: TrainingConfig) -> int:
        """How many are measured at once."""

    @abstractmethod
    def varies(self, config: TrainingConfig) -> bool:
        """Whether each pass over the data gives other cuts."""

    @abstractmethod
    def quality(self, model, config: TrainingConfig, *, final: bool) -> MetricFn:
        """How reconstructions are measured, while training goes on or in the end."""

    @abstractmethod
    def summary(self, quality: ReconstructionQuality) -> str:
        """What was measured, in a line."""

    @abstractmethod
    def factor(self, model) -> str:
        """How much of the signal a code stands for, in a few words."""

    @abstractmethod
    def picture(self, rows: list[Tensor], model) -> np.ndarray:
        """Examples [B, ...] one row above the other, [height, width, 3] uint8."""

    def write_sounds(self, folder: Path, original: Tensor, reconstruction: Tensor, model) -> None:
        """Write what is to be listened to, if anything is, into a saved tokenizer's folder."""
        return


def places(config: ModelConfig) -> dict[str, Any]:
    """Where within a folder or a repository the start is."""
    names = {"subfolder": config.subfolder, "revision": config.revision}
    return {name: value for name, value in names.items() if value is not None}
