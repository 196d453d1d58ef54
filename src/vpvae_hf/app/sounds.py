"""Sounds on the page.

Shapes: T samples and n codes of a sound; K codes in the codebook, N of them on a sheet.
"""

import contextlib
import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vpvae_hf.data.audio import AudioFile
from vpvae_hf.metrics.audio import log_mel_spectrogram
from vpvae_hf.metrics.codecs import CodecUnavailableError, Opus, nearest_in_size
from vpvae_hf.metrics.pictures import in_spectrogram_colours
from vpvae_hf.models.tokenizer import Tokenizer
from vpvae_hf.unreadable import UnreadableFileError

from .bench import Bench, Progress, Row, Source, Work, quiet
from .charts import Chart, sheet_of_cells, sheet_shape

# Codes of sounds of up to this many seconds may be loaded.
_MOST_SECONDS = 600
# A sound counts as silent if no sample is louder than this; the noise of a quiet recording is louder.
_SILENCE = 1e-3
# Codes per row of a map, few enough that each can be clicked.
_CODES_IN_A_ROW = 64
# A sheet shows up to this many codes; if the codebook has more, those that the sound uses most.
_MOST_ON_SHEET = 512
# Length of the sounds that repeat one code, and how many are decoded at once.
_FILLED_SECONDS, _BATCH = 0.1, 32
# Width in pixels of a code's spectrum on a sheet, and of the gap behind it.
_COLUMN, _GAP = 5, 1
# Bands this far below the loudest band of all codes, as a natural logarithm, are black.
_RANGE = 80 / 20 * math.log(10)


class SoundBench(Bench):
    """An audio tokenizer."""

    kind = "audio"

    def __init__(self, model: Tokenizer, name: str, revision: str | None = None):
        super().__init__(model, name, revision)
        self._known: dict[int, Tensor] = {}  # the spectra of codes, by K

    @property
    def rate(self) -> int:
        """Samples per second."""
        return self.model.config.sampling_rate

    def read(self, file: str, limit: int) -> Source:
        """The first `limit` seconds of a sound, resampled and with its channels averaged if necessary."""
        rate, least = self.rate, self.model.config.hop_length
        with AudioFile({"bytes": None, "path": file}, sampling_rate=rate, resample=True, downmix=True) as audio:
            length = audio.length
            if length < least:
                raise UnreadableFileError(
                    f"{Path(file).name}: it is {1000 * length / rate:.1f} ms long, and one code stands for "
                    f"{1000 * least / rate:.1f} ms; give a longer sound"
                )
            clip = torch.from_numpy(audio.read(0, min(length, limit * rate)))
        told = f"{length / rate:.2f} s"
        if length > limit * rate:
            told += f", only the first {limit} s are used (see “Longest part”)"
        if clip.abs().max() < _SILENCE:
            told += "; it is silent, so check that the microphone is switched on and that this page may use it"
        return Source(Path(file).stem, clip[None, None], self._size(len(clip)), told + ".")

    def example(self) -> Source:
        noise = 0.1 * torch.randn(1, 1, self.rate, generator=torch.Generator().manual_seed(0))
        return Source("example", noise, self._size(self.rate), "")

    def within_limits(self, size: Mapping[str, int]) -> str | None:
        too_long = size["num_samples"] > _MOST_SECONDS * self.rate
        return f"this page decodes sounds of up to {_MOST_SECONDS} s" if too_long else None

    def places(self, work: Work) -> Tensor:
        """Rows of equal length, like lines of text: time runs to the right, then down."""
        count, columns = len(work.codes), min(len(work.codes), _CODES_IN_A_ROW)
        rows = -(-count // columns)
        places = torch.full((rows * columns,), -1)
        places[:count] = torch.arange(count)
        return places.view(rows, columns)

    def rows(self, work: Work) -> list[Row]:
        import soundfile

        codes = Row(
            f"{work.codes.numel():,} codes, K = {work.codebook_size:,}",
            self.stored_bytes(work),
            self.quality(work, work.decoded),
        )
        original, flac = self.modality.cut(work.source.signal, work.size), io.BytesIO()
        rows = [codes]
        with contextlib.suppress(CodecUnavailableError):
            opus = Opus(self.rate)
            _, file = nearest_in_size(opus, original[0], codes.stored)
            decoded = opus.decode(file, original[0])[None]
            rows.append(Row("Opus, nearest in size", len(file), self.quality(work, decoded), decoded))
        soundfile.write(flac, original[0, 0].clamp(-1, 1).numpy(), self.rate, format="FLAC")
        return [*rows, Row("FLAC", len(flac.getvalue()), {})]

    def sheet(self, work: Work, progress: Progress = quiet) -> Chart | None:
        """The spectrum of a sound that repeats each code alone, low frequencies at the bottom, sorted by pitch."""
        if not self.has_single_codes:
            return None
        counts = work.codes.flatten().bincount(minlength=work.codebook_size)
        shown = counts.argsort(descending=True, stable=True)[:_MOST_ON_SHEET]
        spectra = self._spectra(shown, work.codebook_size, progress)  # [N, bands]
        weights = spectra.exp()
        pitch = (weights * torch.arange(spectra.shape[1])).sum(dim=1) / weights.sum(dim=1)
        order = pitch.argsort()
        rows, columns = sheet_shape(len(shown), aspect=_COLUMN / spectra.shape[1])
        values = torch.full((rows * columns,), -1)
        values[: len(shown)] = shown[order]
        shades = ((spectra[order] - spectra.max() + _RANGE) / _RANGE).clamp(0, 1).flip(1).numpy()
        cells = np.full((rows * columns, spectra.shape[1], _COLUMN + _GAP, 3), 255, dtype=np.uint8)
        cells[: len(shown), :-_GAP, :_COLUMN] = in_spectrogram_colours(shades)[:, :-_GAP, None]
        return sheet_of_cells(cells.reshape(rows, columns, *cells.shape[1:]), values.view(rows, columns))

    def compared(self, work: Work) -> np.ndarray:
        """Waveforms and spectrograms [height, width, 3] uint8 of the source, if there is one, and the decoded sound."""
        source = [] if work.source is None else [self.modality.cut(work.source.signal, work.size)]
        return self.modality.picture([*source, work.decoded], self.model)

    def samples(self, signal: Tensor) -> tuple[int, np.ndarray]:
        """The rate, and 16-bit samples [T], of a sound [1, 1, T]."""
        return self.rate, (signal[0, 0].clamp(-1, 1) * 32767).round().to(torch.int16).numpy()

    def _size(self, length: int) -> dict[str, int]:
        return {"num_samples": length, "sampling_rate": self.rate}

    def _spectra(self, codes: Tensor, codebook_size: int, progress: Progress) -> Tensor:
        """Logarithms [N, bands] of the spectra of sounds that each repeat one of the codes [N]."""
        filled = round(_FILLED_SECONDS * self.model.config.frame_rate)
        with self._lock, torch.no_grad():
            self.model.select_codebook(codebook_size)
            known = self._known.get(codebook_size)
            missing = codes if known is None else codes[known[codes, 0].isnan()]
            if len(missing):
                parts = self._fills(missing, (max(1, filled),), _BATCH, progress)
                spectra = torch.cat([log_mel_spectrogram(part[:, 0], self.rate).mean(dim=-1) for part in parts])
                if known is None:
                    known = torch.full((codebook_size, spectra.shape[1]), torch.nan)
                known[missing] = spectra
                self._known[codebook_size] = known
            return known[codes]
