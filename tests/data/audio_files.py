"""Small audio files whose samples show which clip they belong to and where in it they lie, and data sets of them."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile
from torch import Tensor

from vpvae_hf.data import AudioSegment, ItemLoader, ItemStream, Transform, open_audio

OPEN, KIND, COLUMN = open_audio, "audio clip", "sound"
RATE = 16000
CORRUPT = b"<html>404</html>"
# Settings of `loader_of` for what varies from item to item.
RANDOM: dict = {}
# Samples are whole multiples of 2 ** -17, which 24 bits and float32 hold exactly.
_LONGEST, _SCALE = 4096, 1 << 17


def clip(number: int, samples: int = 200) -> np.ndarray:
    """[T] float32, T at most 4096, number at most 31."""
    return ((number * _LONGEST + np.arange(samples)) / _SCALE).astype(np.float32)


def file(number: int) -> bytes:
    """A file of the clip of that number."""
    return encoded(clip(number))


def whole() -> AudioSegment:
    """A transform that gives the first samples, which do not vary."""
    return AudioSegment(length=50, sampling_rate=RATE, position="start")


def loader_of(
    name: str,
    transform: Transform | None = None,
    *,
    batch_size: int = 1,
    workers: int = 0,
    device: str = "cpu",
    **settings,
) -> ItemLoader:
    """A loader of random segments of the split "train"; of 50 samples unless another transform is given."""
    transform = transform or AudioSegment(length=50, sampling_rate=RATE)
    stream = ItemStream(open_audio(name, split="train"), transform, **settings)
    return ItemLoader(stream, batch_size=batch_size, workers=workers, device=device)


def numbers_of(batches: Iterable[Tensor]) -> list[int]:
    """Which clips the batches hold, in order."""
    return [int(number) for batch in batches for number in (batch[:, 0, 0] * _SCALE).long() // _LONGEST]


def starts_of(batches: Iterable[Tensor]) -> list[int]:
    """Where in their clips the segments of the batches begin, in order."""
    return [int(start) for batch in batches for start in (batch[:, 0, 0] * _SCALE).long() % _LONGEST]


def sine(frequency: float, rate: int, samples: int, phase: float = 0.5) -> np.ndarray:
    """[T] float64 of amplitude 0.5; frequency in Hz, phase in radians."""
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(samples) / rate + phase)


def encoded(audio: np.ndarray, rate: int = RATE, file_format: str = "WAV", subtype: str | None = "PCM_24") -> bytes:
    """A file of audio [T] or [T, channels]."""
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate, format=file_format, subtype=subtype)
    return buffer.getvalue()


def write_files(folder: Path, files: dict[str, bytes]) -> str:
    """A folder of files by their names within it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return str(folder)


def write_rows(file: Path, features: dict, rows: list[dict]) -> str:
    """A Parquet file; unlike a `datasets.Dataset` it takes audio without torchcodec. Returns its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    schema = datasets.Features(features).arrow_schema
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        if rows:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
    return str(file.parent)


def write_shards(
    folder: Path,
    shards: Sequence[Sequence[bytes | None]],
    split: str = "train",
    column: str = COLUMN,
    kind=datasets.Audio,
) -> str:
    """A Parquet file a shard, with a column of files and one of labels, the places in the data set."""
    features, label = {"label": datasets.Value("int64"), column: kind()}, 0
    for number, files in enumerate(shards):
        rows = []
        for file in files:
            rows.append({"label": label, column: None if file is None else {"bytes": file, "path": f"{label}.wav"}})
            label += 1
        write_rows(folder / f"{split}-{number:05d}-of-{len(shards):05d}.parquet", features, rows)
    return str(folder)


def write_counted(folder: Path, *counts: int, samples: int = 200) -> str:
    """Shards of so many clips each, numbered through."""
    numbers = iter(range(sum(counts)))
    return write_shards(folder, [[encoded(clip(next(numbers), samples)) for _ in range(count)] for count in counts])
