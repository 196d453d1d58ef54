"""Familiar lossy codecs to compare tokenizers with: WebP for images, Opus for audio.

A signal is one image [C, H, W] or one clip [1, T], floating point in [-1, 1]; values beyond are clipped. Files are
whole, with their headers.
"""

import io
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vpvae_hf.pixels import from_pixel_values, image_of, read_pixels, to_pixel_values

_LAST_SETTING = 100


class CodecUnavailableError(ValueError):
    """The library that writes a codec's files cannot write them here."""


class Codec(ABC):
    """A codec whose settings are the integers 0 to 100.

    Attributes:
        name: its name, as people read it.
        ladder: the settings of a curve, from the smallest files to the largest.
    """

    name: ClassVar[str]
    ladder: ClassVar[range]

    @abstractmethod
    def encode(self, signal: Tensor, setting: int) -> bytes:
        """The file of a signal."""

    @abstractmethod
    def decode(self, file: bytes, signal: Tensor) -> Tensor:
        """What the file of a signal holds: float32 on the CPU, shaped as the signal."""

    @abstractmethod
    def extent(self, signal: Tensor) -> float:
        """What a file's bits are divided by to get a rate: pixels for bits per pixel, milliseconds for kbit/s."""


class WebP(Codec):
    """WebP by its quality. Images have one channel (grey), three (RGB) or four (RGBA).

    Args:
        effort: 0 (fast) to 6 (small files), Pillow's `method`.
    """

    name, ladder = "WebP", range(0, _LAST_SETTING + 1, 10)

    def __init__(self, effort: int = 6):
        self._effort = effort

    def encode(self, signal: Tensor, setting: int) -> bytes:
        buffer = io.BytesIO()
        image_of(from_pixel_values(signal)).save(buffer, "webp", quality=setting, method=self._effort)
        return buffer.getvalue()

    def decode(self, file: bytes, signal: Tensor) -> Tensor:
        return to_pixel_values(read_pixels({"bytes": file, "path": None}, len(signal))[None])[0]

    def extent(self, signal: Tensor) -> float:
        return signal.shape[-2] * signal.shape[-1]


class Opus(Codec):
    """Opus in Ogg files. A setting is libsndfile's compression level in hundredths: about 256 kbit/s at 0, 6 at 100.

    Args:
        sampling_rate: of clips, Hz.

    Raises:
        CodecUnavailableError: libsndfile cannot write Opus, or not at this rate.
    """

    name, ladder = "Opus", range(_LAST_SETTING, -1, -1)

    def __init__(self, sampling_rate: int):
        import soundfile

        self._rate = sampling_rate
        try:
            self.encode(torch.zeros(1, 1), _LAST_SETTING)
        except (soundfile.LibsndfileError, ValueError) as error:  # a ValueError if it knows no Opus at all
            raise CodecUnavailableError(
                f"libsndfile {soundfile.__libsndfile_version__} cannot write Opus at {sampling_rate} Hz; Opus has 8, "
                "12, 16, 24 and 48 kHz"
            ) from error

    def encode(self, signal: Tensor, setting: int) -> bytes:
        import soundfile

        buffer, samples = io.BytesIO(), signal[0].detach().float().cpu().clamp(-1, 1).numpy()
        how = {"format": "OGG", "subtype": "OPUS", "compression_level": setting / _LAST_SETTING}
        soundfile.write(buffer, samples, self._rate, **how)
        return buffer.getvalue()

    def decode(self, file: bytes, signal: Tensor) -> Tensor:
        import soundfile

        length = signal.shape[-1]
        samples, _ = soundfile.read(io.BytesIO(file), dtype="float32")
        return torch.from_numpy(np.pad(samples, (0, max(0, length - len(samples))))[:length])[None]

    def extent(self, signal: Tensor) -> float:
        return 1000 * signal.shape[-1] / self._rate


def nearest_in_size(codec: Codec, signal: Tensor, wanted: int) -> tuple[int, bytes]:
    """The setting whose file is nearest in size to so many bytes, and that file.

    It assumes that sizes only grow, or only shrink, as the setting rises.
    """
    low, high, grows = 0, _LAST_SETTING, codec.ladder.step > 0
    files: dict[int, bytes] = {}
    while low <= high:
        middle = (low + high) // 2
        files[middle] = codec.encode(signal, middle)
        too_small, too_large = len(files[middle]) < wanted, len(files[middle]) > wanted
        low, high = (middle + 1, high) if (too_small if grows else too_large) else (low, middle - 1)
    setting = min(files, key=lambda each: abs(len(files[each]) - wanted))
    return setting, files[setting]
