"""Audio: files to mono waveforms at one sampling rate, whole clips or segments of them.

Shapes: T samples of a clip, S of a segment, B items; float32, full scale is [-1, 1].
"""

import io
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import fsspec
import numpy as np
import torch
from torch import Tensor

from vpvae_hf.resampling import resampled
from vpvae_hf.settings import installed_with, require, require_integer
from vpvae_hf.tensors import LARGEST_SIGNAL
from vpvae_hf.unreadable import UnreadableFileError, name_of, unreadable

from .sources import Transform

# libsndfile reports this if a file's header does not state its length.
_UNKNOWN_LENGTH = (1 << 63) - 1
# In Hz. Damaged headers may state higher rates, from which resampling would take minutes.
_CONVERTED_RATES = range(100, 1_000_001)
# Samples of an MP3 file that are decoded before a part: at the lowest bit rates, frames borrow bits from up to 11
# earlier ones. Without these, libsndfile gives wrong audio, and no error.
_BORROWED = 11 * 1152
_POSITIONS = ("random", "center", "start")


@dataclass(frozen=True, kw_only=True)
class _AudioTransform(Transform):
    kind: ClassVar[str] = "audio clip"

    sampling_rate: int
    resample: bool = False
    downmix: bool = False
    shortest: int = 1

    def __post_init__(self):
        require_integer("sampling_rate", self.sampling_rate, 1)

    def model_input(self, batch: Tensor) -> Tensor:
        return batch.unsqueeze(1)

    @contextmanager
    def _opened(self, file: Mapping | None) -> Iterator["AudioFile"]:
        how = {"sampling_rate": self.sampling_rate, "resample": self.resample, "downmix": self.downmix}
        with AudioFile(file, **how) as audio:
            if audio.length < self.shortest:
                raise UnreadableFileError(f"{audio.name}: it has {audio.length} of at least {self.shortest} samples")
            yield audio


@dataclass(frozen=True, kw_only=True)
class AudioSegment(_AudioTransform):
    """Segments of one length: items [S] float32, batches [B, 1, S]. Loudness is kept, and so is silence.

    Only the segment is decoded, so a corrupt part elsewhere in the file goes unnoticed. A shorter clip is followed by
    zeros.

    Args:
        length: S.
        sampling_rate: the segment's sampling rate in Hz.
        resample: resample files of another sampling rate, which otherwise raise an error.
        downmix: average the channels of files that have several, which otherwise raise an error.
        shortest: the smallest length of a clip; shorter ones count as unreadable.
        position: "random", "center", or "start" of the clip.
    """

    length: int
    position: Literal["random", "center", "start"] = "random"

    def __post_init__(self):
        super().__post_init__()
        require_integer("length", self.length, 1)
        require(self.position in _POSITIONS, "position", self.position, "random, center or start")

    def read(self, file: Mapping | None, rng: np.random.Generator) -> Tensor:
        return self._segment(file, rng)[0]

    def _segment(self, file: Mapping | None, rng: np.random.Generator) -> tuple[Tensor, int]:
        """A segment [S], and how many of its samples come from the clip, the first ones."""
        with self._opened(file) as audio:
            room = max(0, audio.length - self.length)
            start = room // 2 if self.position == "center" else 0
            start = int(rng.integers(room + 1)) if self.position == "random" else start
            waveform = audio.read(start, min(start + self.length, audio.length))
        return torch.from_numpy(np.pad(waveform, (0, self.length - len(waveform)))), len(waveform)


@dataclass(frozen=True, kw_only=True)
class MaskedAudioSegment(AudioSegment):
    """Segments with a mask of the zeros after a shorter clip; arguments and errors are those of `AudioSegment`.

    Items are [2, S], the segment and a mask that is 1 where there is audio; batches are "input_values" [B, 1, S] and
    "padding_mask" [B, S].
    """

    def read(self, file: Mapping | None, rng: np.random.Generator) -> Tensor:
        segment, length = self._segment(file, rng)
        return torch.stack([segment, (torch.arange(self.length) < length).float()])

    def model_input(self, batch: Tensor) -> dict[str, Tensor]:
        return {"input_values": batch[:, :1], "padding_mask": batch[:, 1].long()}


@dataclass(frozen=True, kw_only=True)
class AudioClip(_AudioTransform):
    """Whole clips: items [T] float32, batches [1, 1, T] of one clip each; arguments as for `AudioSegment`."""

    def read(self, file: Mapping | None, rng: np.random.Generator) -> Tensor:
        with self._opened(file) as audio:
            return torch.from_numpy(audio.read(0, audio.length))

    def collate(self, items: list[Tensor]) -> Tensor:
        if len(items) > 1:
            raise ValueError(f"whole clips differ in length, got {len(items)} at once; use a batch size of 1")
        return torch.stack(items)


def read_audio(
    file: str | os.PathLike | Mapping, *, sampling_rate: int, resample: bool = False, downmix: bool = False
) -> np.ndarray:
    """A whole file, [T] float32.

    The file is a path or an address that fsspec knows, or a mapping of "bytes" or "path"; the other arguments are
    those of `AudioSegment`.

    Raises:
        ValueError: another sampling rate or several channels, if they are not allowed.
        UnreadableFileError: no such file or no readable audio (it is a ValueError, too).
    """
    file = {"bytes": None, "path": None, **(file if isinstance(file, Mapping) else {"path": os.fspath(file)})}
    with AudioFile(file, sampling_rate=sampling_rate, resample=resample, downmix=downmix) as audio:
        return audio.read(0, audio.length)


class AudioFile:
    """An open audio file, which decodes only the part that is read; use it in a `with` statement.

    Read a single part, and open the file again for another: libsndfile loses its place in Ogg Vorbis if it goes back.

    Args and errors are those of `read_audio`; `file=None` (a row without a file) raises UnreadableFileError.

    Attributes:
        name: what messages call the file.
        length: T, at the sampling rate of the result.
    """

    def __init__(self, file: Mapping | None, *, sampling_rate: int, resample: bool = False, downmix: bool = False):
        if file is None or (file["bytes"] is None and file["path"] is None):
            raise UnreadableFileError("there is no file")
        require_integer("sampling_rate", sampling_rate, 1)
        with installed_with("'vpvae_hf[audio]'"):
            import soundfile
        self.name, self._origin = name_of(file), file
        try:
            self._file = soundfile.SoundFile(_source_of(file))
        except ImportError:  # a library that the address needs is missing
            raise
        except Exception as error:  # decoders raise all kinds of errors for damaged files
            raise self._unreadable(error) from error
        try:
            self._check(sampling_rate, resample, downmix)
        except ValueError:
            self._file.close()
            raise
        self._rate = sampling_rate
        divisor = math.gcd(sampling_rate, self._file.samplerate)
        self._up, self._down = sampling_rate // divisor, self._file.samplerate // divisor
        self.length = -(-self._file.frames * self._up // self._down)

    def __enter__(self) -> "AudioFile":
        return self

    def __exit__(self, *error) -> None:
        self._file.close()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples start..stop of the whole file's result, 0 <= start < stop <= length.

        Raises:
            UnreadableFileError: this part is corrupt, missing, or holds values that are NaN, infinite or far beyond
                [-1, 1].
        """
        part = self._part(start, stop)
        low, high = part.min(), part.max()
        if max(-low, high) > LARGEST_SIGNAL:
            raise UnreadableFileError(
                f"{self.name}: its samples reach from {low:.6g} to {high:.6g}, beyond the limit of {LARGEST_SIGNAL}; "
                "full scale is 1, so divide them by their range, such as 32768, and save them anew"
            )
        return part

    def _part(self, start: int, stop: int) -> np.ndarray:
        up, down = self._up, self._down
        if up == down:
            return self._decoded(start, stop)
        # Half of the filter is ten periods of the lower rate long. A part begins at a multiple of `down`, where a
        # sample of the whole file's output coincides with a sample of its input.
        margin = 10 * max(up, down) // up + 1
        first = max(0, start * down // up - margin) // down * down
        last = min(self._file.frames, -(-stop * down // up) + margin)
        offset = start - first // down * up
        part = resampled(self._decoded(first, last), self._file.samplerate, self._rate)
        return part[offset : offset + stop - start]

    def _check(self, sampling_rate: int, resample: bool, downmix: bool) -> None:
        found = self._file
        if found.frames == 0:
            raise UnreadableFileError(f"{self.name}: it holds no sample")
        if found.frames == _UNKNOWN_LENGTH:
            raise UnreadableFileError(f"{self.name}: its header does not say how long it is; encode it anew")
        if found.samplerate != sampling_rate and found.samplerate not in _CONVERTED_RATES:
            raise UnreadableFileError(
                f"{self.name}: its header says {found.samplerate} Hz; rates of {_CONVERTED_RATES.start} to "
                f"{_CONVERTED_RATES.stop - 1} Hz are converted"
            )
        faults = {}
        if found.samplerate != sampling_rate and not resample:
            faults["resample"] = f"a sampling rate of {found.samplerate} Hz, not {sampling_rate} Hz"
        if found.channels > 1 and not downmix:
            faults["downmix"] = f"{found.channels} channels, not one"
        if faults:
            remedies = " and ".join(f"{name}=True (--{name}, in a recipe --data.{name} true)" for name in faults)
            raise ValueError(
                f"{self.name} has {' and '.join(faults.values())}; have it converted with {remedies}, or train a "
                "tokenizer for such files"
            )

    def _decoded(self, first: int, last: int) -> np.ndarray:
        """[last - first] at the file's own sampling rate."""
        start = max(0, first - _BORROWED) if self._file.subtype.startswith("MPEG") else first
        try:
            if self._file.seekable():
                self._file.seek(start)
            else:  # such as GSM 6.10
                start = 0
            channels = self._file.read(last - start, dtype="float32", always_2d=True)
        except Exception as error:
            raise self._unreadable(error, f"samples {first} to {last} cannot be decoded: ") from error
        if len(channels) < last - start:
            why = f"it is cut off after {start + len(channels)} of {self._file.frames} samples"
            raise UnreadableFileError(f"{self.name}: {why}")
        channels = channels[first - start :]
        if not np.isfinite(channels).all():
            raise UnreadableFileError(f"{self.name}: it holds values that are NaN or infinite")
        return channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1)

    def _unreadable(self, error: Exception, what: str = "") -> UnreadableFileError:
        # soundfile adds a name to libsndfile's reason, which for a file in memory is the name of a buffer.
        reason = getattr(error, "error_string", None)
        return unreadable(self._origin, error if reason is None else OSError(reason), what)


def _source_of(file: Mapping):
    """What libsndfile opens: a local path, which it reads fastest, or the bytes of any other file."""
    if file["bytes"] is not None:
        return _Memory(file["bytes"])
    if fsspec.utils.get_protocol(file["path"]) == "file":
        path = fsspec.core.strip_protocol(file["path"])
        open(path, "rb").close()  # if this fails, Python says why; libsndfile would not
        return path
    # All bytes at once: a network error while libsndfile reads would look like the end of the file.
    with fsspec.open(file["path"], "rb") as opened:
        return _Memory(opened.read())


class _Memory(io.BytesIO):
    """Bytes for libsndfile, which seeks before the beginning of damaged files; Python would print that error."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return super().seek(max(0, offset) if whence == io.SEEK_SET else offset, whence)
