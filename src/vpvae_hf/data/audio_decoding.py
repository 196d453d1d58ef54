"""Audio files to mono waveforms at one sampling rate, whole or in part.

Shapes: T samples of a waveform, float32, full scale is [-1, 1].
"""

import io
import math
import os
from collections.abc import Mapping

import fsspec
import numpy as np

from vpvae_hf.resampling import resampled

from .files import UnreadableFileError, name_of

# What libsndfile says of a file whose header does not tell its length.
_UNKNOWN_LENGTH = (1 << 63) - 1


def read_audio(
    file: str | os.PathLike | Mapping, *, sampling_rate: int, resample: bool = False, downmix: bool = False
) -> np.ndarray:
    """A whole file, [T] float32.

    Args:
        file: a path or an address that fsspec knows, or a mapping of "bytes" and "path".
        sampling_rate: wanted, in Hz.
        resample: a file of another sampling rate; otherwise it is an error.
        downmix: several channels to their mean; otherwise they are an error.

    Raises:
        ImportError: soundfile is not installed.
        ValueError: another sampling rate or several channels, where that is not allowed.
        UnreadableFileError: no such file or no readable audio (a ValueError, too).
    """
    file = file if isinstance(file, Mapping) else {"bytes": None, "path": os.fspath(file)}
    with AudioFile(file, sampling_rate=sampling_rate, resample=resample, downmix=downmix) as audio:
        return audio.read(0, audio.length)


class AudioFile:
    """An open audio file, which is decoded where it is read and nowhere else; close it, or use it in a `with`.

    Read one part and open it again for another: in Ogg Vorbis libsndfile loses its place when it goes back.

    Args, Raises: see `read_audio`; None for a file is no file.

    Attributes:
        name: of the file, for messages.
        length: T, at the wanted sampling rate.
    """

    def __init__(self, file: Mapping | None, *, sampling_rate: int, resample: bool = False, downmix: bool = False):
        if file is None or (file["bytes"] is None and file["path"] is None):
            raise UnreadableFileError("there is no file")
        self._soundfile, self.name = _import_soundfile(), name_of(file)
        try:
            self._file = self._soundfile.SoundFile(_source_of(file))
        except (self._soundfile.LibsndfileError, OSError, TypeError) as error:
            # The name that soundfile adds to libsndfile's reason is that of a buffer, for a file in memory.
            reason = getattr(error, "error_string", error)
            raise UnreadableFileError(f"{self.name}: {reason}") from error
        try:
            self._check(sampling_rate, resample, downmix)
        except ValueError:
            self.close()
            raise
        self._rate = sampling_rate
        divisor = math.gcd(sampling_rate, self._file.samplerate)
        self._up, self._down = sampling_rate // divisor, self._file.samplerate // divisor
        self.length = -(-self._file.frames * self._up // self._down)

    def __enter__(self) -> "AudioFile":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples start..stop of the wanted sampling rate, 0 <= start < stop <= length; those of the whole file.

        Raises:
            UnreadableFileError: this part is corrupt, missing, or holds values that are NaN or infinite.
        """
        up, down = self._up, self._down
        if up == down:
            return self._decoded(start, stop)
        # Half of the filter, which is ten periods of the lower rate long. A part begins at a multiple of `down`, where
        # a sample of the whole file's output falls on one of its input.
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
        if found.samplerate != sampling_rate and not resample:
            raise ValueError(
                f"{self.name} has a sampling rate of {found.samplerate} Hz, wanted are {sampling_rate} Hz; "
                "allow resampling (resample=True, --resample, --data.resample true)"
            )
        if found.channels > 1 and not downmix:
            raise ValueError(
                f"{self.name} has {found.channels} channels, wanted is one; "
                "allow their mean (downmix=True, --downmix, --data.downmix true)"
            )

    def _decoded(self, first: int, last: int) -> np.ndarray:
        """[last - first] at the file's own sampling rate."""
        try:
            self._file.seek(first)
            channels = self._file.read(last - first, dtype="float32", always_2d=True)
        except self._soundfile.LibsndfileError as error:
            raise UnreadableFileError(
                f"{self.name}: samples {first} to {last} cannot be decoded: {error.error_string}"
            ) from error
        if len(channels) < last - first:
            raise UnreadableFileError(
                f"{self.name}: it is cut off after {first + len(channels)} of {self._file.frames} samples"
            )
        if not np.isfinite(channels).all():
            raise UnreadableFileError(f"{self.name}: it holds values that are NaN or infinite")
        return channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1)


def _source_of(file: Mapping):
    """What libsndfile opens: a local path, which it reads fastest, or all bytes of any other file."""
    if file["bytes"] is not None:
        return io.BytesIO(file["bytes"])
    if fsspec.utils.get_protocol(file["path"]) == "file":
        path = fsspec.core.strip_protocol(file["path"])
        open(path, "rb").close()  # Python tells why that fails, libsndfile does not
        return path
    # At once: an error of the network while libsndfile reads would look like the end of the file.
    with fsspec.open(file["path"], "rb") as opened:
        return io.BytesIO(opened.read())


def _import_soundfile():
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("soundfile is missing; install it with: pip install 'vpvae_hf[audio]'") from error
    return soundfile
