"""What a stream gives of a file, and how a batch of that becomes a model's input.

Shapes: B files; S the side of a crop in pixels, or the samples of a segment; T samples of a whole clip.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from .audio_decoding import AudioFile
from .crops import center_crop, maybe_mirrored, random_crop, to_pixel_values
from .files import UnreadableFileError, name_of
from .image_decoding import decode_image, scaled


class Cut(ABC):
    """Decodes a file and cuts a sample out of it. It holds settings alone, so it goes to worker processes.

    Attributes:
        kind: of file, for messages.
    """

    kind: ClassVar[str]

    @abstractmethod
    def sample(self, file: Mapping | None, rng: np.random.Generator) -> Tensor:
        """One sample, in its smallest form.

        Args:
            file: "bytes" and "path".
            rng: of what is random about it.

        Raises:
            UnreadableFileError: this file is to be skipped.
            ValueError: what is wrong concerns all files.
        """

    def collate(self, samples: list[Tensor]) -> Tensor:
        """A batch in the samples' own form, in which workers send it."""
        return torch.stack(samples)

    @abstractmethod
    def model_input(self, batch: Tensor) -> Tensor | dict[str, Tensor]:
        """A batch as a model takes it."""


@dataclass(frozen=True, kw_only=True)
class ImageCrop(Cut):
    """Square crops: samples [S, S, 3] uint8, batches [B, 3, S, S] float32 in [-1, 1].

    Args:
        size: S.
        shortest_side: images are scaled to it; where None, only those smaller than S are, to S.
        crop: "random", or "center".
        flip: mirror half of the images.

    Raises:
        ValueError: a size below 1, or a shortest side below the size.
    """

    kind: ClassVar[str] = "image"

    size: int
    shortest_side: int | None = None
    crop: Literal["random", "center"] = "center"
    flip: bool = False

    def __post_init__(self):
        _check_at_least_one("size", self.size)
        if self.shortest_side is not None and self.shortest_side < self.size:
            raise ValueError(
                f"shortest_side must be at least the size of a crop, {self.size}, got {self.shortest_side}"
            )

    def sample(self, file: Mapping | None, rng: np.random.Generator) -> Tensor:
        image = decode_image(file)
        if self.shortest_side is not None or min(image.shape[:2]) < self.size:
            image = scaled(image, self.shortest_side or self.size)
        crop = center_crop(image, self.size) if self.crop == "center" else random_crop(image, self.size, rng)
        crop = maybe_mirrored(crop, rng) if self.flip else crop
        # A copy: Pillow's arrays are read-only, and a mirrored view has a stride that torch does not know.
        return torch.from_numpy(crop.copy())

    def model_input(self, batch: Tensor) -> Tensor:
        return to_pixel_values(batch)


@dataclass(frozen=True, kw_only=True)
class _AudioCut(Cut):
    """Opens files for those below."""

    kind: ClassVar[str] = "audio clip"

    sampling_rate: int
    resample: bool = False
    downmix: bool = False

    def __post_init__(self):
        _check_at_least_one("sampling_rate", self.sampling_rate)

    def model_input(self, batch: Tensor) -> Tensor:
        return batch.unsqueeze(1)

    def _opened(self, file: Mapping | None) -> AudioFile:
        return AudioFile(file, sampling_rate=self.sampling_rate, resample=self.resample, downmix=self.downmix)


@dataclass(frozen=True, kw_only=True)
class AudioSegment(_AudioCut):
    """Segments of one length: samples [S] float32, batches [B, 1, S]. Loudness is kept, and so is silence.

    Only the segment is decoded, so only there is a corrupt file found out. A clip that is shorter is followed by zeros.

    Args:
        length: S.
        sampling_rate: of the segment, in Hz.
        resample: files of another sampling rate; otherwise they are an error.
        downmix: several channels to their mean; otherwise they are an error.
        position: "random", "center", or "start" of the clip.

    Raises:
        ValueError: a length or sampling rate below 1, or another position.
    """

    length: int
    position: Literal["random", "center", "start"] = "random"

    def __post_init__(self):
        super().__post_init__()
        _check_at_least_one("length", self.length)
        if self.position not in ("random", "center", "start"):
            raise ValueError(f"position must be random, center or start, got {self.position!r}")

    def sample(self, file: Mapping | None, rng: np.random.Generator) -> Tensor:
        with self._opened(file) as audio:
            start = self._start(max(0, audio.length - self.length), rng)
            waveform = audio.read(start, min(start + self.length, audio.length))
        return torch.from_numpy(np.pad(waveform, (0, self.length - len(waveform))))

    def _start(self, room: int, rng: np.random.Generator) -> int:
        if self.position == "random":
            return int(rng.integers(room + 1))
        return room // 2 if self.position == "center" else 0


@dataclass(frozen=True, kw_only=True)
class MaskedAudioSegment(AudioSegment):
    """Segments that tell audio from what follows a shorter clip: batches of "input_values" and "padding_mask".

    Args, Raises: as of `AudioSegment`, and
        shortest: the least length of a clip; shorter ones count as unreadable.
    """

    shortest: int = 1

    def sample(self, file: Mapping | None, rng: np.random.Generator) -> Tensor:
        """[2, S], the segment and 1 where it is audio."""
        with self._opened(file) as audio:
            length = audio.length
        if length < self.shortest:
            raise UnreadableFileError(f"{name_of(file)}: it has {length} of at least {self.shortest} samples")
        segment = super().sample(file, rng)
        return torch.stack([segment, (torch.arange(self.length) < length).float()])

    def model_input(self, batch: Tensor) -> dict[str, Tensor]:
        return {"input_values": batch[:, :1], "padding_mask": batch[:, 1].long()}


@dataclass(frozen=True, kw_only=True)
class AudioClip(_AudioCut):
    """Whole clips: samples [T] float32, batches [1, 1, T] of one clip each.

    Args:
        sampling_rate: of the clip, in Hz.
        resample: files of another sampling rate; otherwise they are an error.
        downmix: several channels to their mean; otherwise they are an error.
        shortest: the least T; shorter clips count as unreadable.

    Raises:
        ValueError: a sampling rate below 1.
    """

    shortest: int = 1

    def sample(self, file: Mapping | None, rng: np.random.Generator) -> Tensor:
        with self._opened(file) as audio:
            if audio.length < self.shortest:
                raise UnreadableFileError(f"{audio.name}: it has {audio.length} of at least {self.shortest} samples")
            return torch.from_numpy(audio.read(0, audio.length))

    def collate(self, samples: list[Tensor]) -> Tensor:
        if len(samples) > 1:
            raise ValueError(f"whole clips differ in length, got {len(samples)} at once; use a batch size of 1")
        return torch.stack(samples)


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
