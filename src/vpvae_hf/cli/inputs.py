"""Options that name a data set of images or audio, for the commands that read one for a tokenizer."""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor

from vpvae_hf import AutoencoderVP, VPCodecModel
from vpvae_hf.data import (
    AudioClip,
    AudioCoder,
    Coder,
    ImageCoder,
    ImageCrop,
    ItemLoader,
    ItemStream,
    MaskedAudioSegment,
    Source,
    Transform,
    check_readable,
    open_audio,
    open_images,
)
from vpvae_hf.metrics import MetricFn, audio_quality, image_quality

from .tokenizers import Tokenizer

# Of audio that a codebook is fitted to.
_SEGMENT_SECONDS = 2.0
_SHUFFLED = 1000


class Inputs(ABC):
    """A data set for a tokenizer, as options name it.

    Attributes:
        measured: what is measured or encoded one by one.
        unquantized: figures of quality that are also measured without quantization; None for all.

    Raises:
        ValueError: an option that this tokenizer has no use for, or a batch size below 1.
    """

    measured: str
    unquantized: tuple[str, ...] | None
    _open: Callable[..., Source]
    _foreign: tuple[str, ...]

    def __init__(self, options: argparse.Namespace, model: Tokenizer):
        self.options, self.model = options, model
        if options.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
        for name in self._foreign:
            if getattr(options, name):
                option = name.replace("_", "-")
                raise ValueError(f"--{option} has no meaning for a {type(model).__name__}; leave it out")

    def source(self, **how) -> Source:
        """The data set; `how` as `open_images` and `open_audio` take it."""
        options = self.options
        return type(self)._open(
            options.dataset,
            split=options.split,
            config=options.dataset_config,
            revision=options.dataset_revision,
            column=options.column,
            **how,
        )

    def shuffled(self, seed: int) -> Iterable[Tensor | dict[str, Tensor]]:
        """Endless batches for fitting."""
        return self._loader(self._random_cut(), self.options.batch_size, shuffled=_SHUFFLED, passes=None, seed=seed)

    def in_order(self) -> Iterable[Tensor]:
        """Batches of all of it, once, for measuring."""
        return self._loader(self._whole_cut(), self._whole_batch_size(), shuffled=1, passes=1, seed=0)

    @abstractmethod
    def quality(self, *, lpips: bool) -> MetricFn:
        """How reconstructions are measured."""

    @abstractmethod
    def coder(self) -> Coder:
        """What makes codes of its files."""

    @abstractmethod
    def scale(self) -> dict[str, Any]:
        """How much of the signal a code stands for, as JSON stores it."""

    @abstractmethod
    def coding(self) -> dict[str, Any]:
        """What the codes depend on beside tokenizer and files, as JSON stores it."""

    @abstractmethod
    def _random_cut(self) -> Transform: ...

    @abstractmethod
    def _whole_cut(self) -> Transform: ...

    def _whole_batch_size(self) -> int:
        return self.options.batch_size

    def _loader(self, cut: Transform, batch_size: int, *, shuffled: int, passes: int | None, seed: int) -> ItemLoader:
        source = self.source()
        check_readable(source, cut)
        stream = ItemStream(source, cut, shuffle_buffer=shuffled, passes=passes, seed=seed)
        return ItemLoader(stream, batch_size=batch_size, workers=1)


class ImageInputs(Inputs):
    """Crops of images."""

    measured, unquantized = "images", ("psnr",)
    _open = open_images
    _foreign = ("resample", "downmix")

    def quality(self, *, lpips: bool) -> MetricFn:
        return partial(image_quality, lpips=lpips)

    def coder(self) -> Coder:
        return ImageCoder(self.model, **self.coding())

    def scale(self) -> dict[str, Any]:
        return {"downsample_factor": self.model.downsample_factor}

    def coding(self) -> dict[str, Any]:
        size = self.model.config.sample_size if self.options.size is None else self.options.size
        side = self.options.shortest_side
        return {"size": size, "shortest_side": size if side is None else side}

    def _random_cut(self) -> Transform:
        return ImageCrop(**self.coding(), crop="random")

    def _whole_cut(self) -> Transform:
        return ImageCrop(**self.coding())


class AudioInputs(Inputs):
    """Clips of audio."""

    measured, unquantized = "clips", None
    _open = open_audio
    _foreign = ("size", "shortest_side")

    def quality(self, *, lpips: bool) -> MetricFn:
        if lpips:
            raise ValueError("--lpips compares images; leave it out for audio")
        return partial(audio_quality, sampling_rate=self.model.config.sampling_rate)

    def coder(self) -> Coder:
        return AudioCoder(self.model, **self.coding())

    def scale(self) -> dict[str, Any]:
        return {"hop_length": self.model.config.hop_length, "sampling_rate": self.model.config.sampling_rate}

    def coding(self) -> dict[str, Any]:
        return {"resample": self.options.resample, "downmix": self.options.downmix}

    def _random_cut(self) -> Transform:
        config = self.model.config
        length = max(1, round(_SEGMENT_SECONDS * config.frame_rate)) * config.hop_length
        reading = {"sampling_rate": config.sampling_rate, "shortest": config.hop_length, **self.coding()}
        return MaskedAudioSegment(length=length, **reading)

    def _whole_cut(self) -> Transform:
        config = self.model.config
        return AudioClip(sampling_rate=config.sampling_rate, shortest=config.hop_length, **self.coding())

    def _whole_batch_size(self) -> int:
        return 1  # clips differ in length


_INPUTS: dict[type, type[Inputs]] = {AutoencoderVP: ImageInputs, VPCodecModel: AudioInputs}


def inputs_for(model: Tokenizer, options: argparse.Namespace) -> Inputs:
    """The data set that the options name, for that tokenizer."""
    return _INPUTS[type(model)](options, model)
