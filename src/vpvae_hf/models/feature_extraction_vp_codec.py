"""Turns waveforms into inputs of the audio tokenizer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import BatchFeature, EncodecFeatureExtractor

from vpvae_hf.resampling import resampled
from vpvae_hf.settings import require_integer
from vpvae_hf.tensors import as_floating, require_finite

SCALING = "divide samples of 16 bits by 32768, of another type by its range"


class VPCodecFeatureExtractor(EncodecFeatureExtractor):
    """Pads mono waveforms to a batch, with a mask; loudness stays as it is. `sampling_rate` is the tokenizer's, Hz."""

    model_input_names = ("input_values", "padding_mask")

    def __init__(self, sampling_rate: int = 16000, **kwargs):
        super().__init__(**{"feature_size": 1, **kwargs}, sampling_rate=sampling_rate)

    def __call__(
        self, raw_audio: np.ndarray | Sequence, sampling_rate: int | None = None, resample: bool = False, **kwargs
    ) -> BatchFeature:
        """Make a batch.

        Args:
            raw_audio: [T] floating, in [-1, 1], as an array, tensor or list; a list or column of these; or a batch
                [B, 1, T]. Other dimensions of size 1, as in [1, T] and [T, 1], do not count.
            sampling_rate: that of the audio, Hz; None for the tokenizer's.
            resample: convert audio of another rate, which otherwise raises an error.
            kwargs: padding, truncation, max_length and return_tensors as in transformers.

        Returns:
            "input_values" [B, 1, T], and "padding_mask" [B, T], 1 for audio.
        """
        rate = self.sampling_rate if sampling_rate is None else sampling_rate
        if rate != self.sampling_rate:
            require_integer("sampling_rate", rate, 1)
        if rate != self.sampling_rate and not resample:
            raise ValueError(
                f"the tokenizer works at {self.sampling_rate} Hz, the audio has {rate} Hz; resample it, or give "
                "resample=True"
            )
        waveforms = [_checked(waveform) for waveform in (raw_audio if _is_batch(raw_audio) else [raw_audio])]
        waveforms = [resampled(waveform, rate, self.sampling_rate) for waveform in waveforms]
        return super().__call__(waveforms, sampling_rate=self.sampling_rate, **kwargs)


def require_samples(audio: Tensor) -> None:
    """Raise a ValueError if audio is empty, not finite or far beyond [-1, 1]."""
    require_finite(audio, "audio samples", "; audio lies in [-1, 1]", SCALING)


def _is_batch(audio: Any) -> bool:
    if isinstance(audio, np.ndarray | Tensor) and audio.dtype != object:
        return audio.ndim == 3 and audio.shape[1] == 1 and len(audio) > 0
    return isinstance(audio, np.ndarray | Sequence) and len(audio) > 0 and np.ndim(audio[0]) > 0


def _checked(waveform: Any) -> np.ndarray:
    """[T] float32."""
    audio = as_floating(waveform, "audio", remedy=SCALING).detach().cpu()
    if audio.numel() > max(audio.shape, default=0):
        raise ValueError(
            f"audio must be mono, [T], got shape {tuple(audio.shape)}, which looks like a batch or like several "
            "channels; give clips [n, T] as list(x) or x[:, None], and channels as their mean or as clips"
        )
    require_samples(audio)
    return audio.float().flatten().numpy()
