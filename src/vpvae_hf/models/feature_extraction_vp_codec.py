"""Waveforms as the audio tokenizer takes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature, EncodecFeatureExtractor

from vpvae_hf.resampling import resampled


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
            raw_audio: [T] floating, in [-1, 1], or a list of such.
            sampling_rate: of the audio, Hz; the tokenizer's if it is None.
            resample: allow another rate, which is then converted.
            kwargs: padding, truncation, max_length and return_tensors as in transformers.

        Returns:
            "input_values" [B, 1, T], and "padding_mask" [B, T], 1 for audio.
        """
        rate = self.sampling_rate if sampling_rate is None else sampling_rate
        if rate != self.sampling_rate and not resample:
            raise ValueError(
                f"the tokenizer works at {self.sampling_rate} Hz, the audio has {rate} Hz; resample it, or give "
                "resample=True"
            )
        is_batch = isinstance(raw_audio, list | tuple) and len(raw_audio) > 0 and np.ndim(raw_audio[0]) > 0
        waveforms = [_checked(waveform) for waveform in (raw_audio if is_batch else [raw_audio])]
        waveforms = [resampled(waveform, rate, self.sampling_rate) for waveform in waveforms]
        return super().__call__(waveforms, sampling_rate=self.sampling_rate, **kwargs)


def _checked(waveform: Any) -> np.ndarray:
    """[T] float32."""
    waveform = np.asarray(waveform)
    if waveform.ndim != 1:
        raise ValueError(f"audio must be mono, [T], got shape {waveform.shape}; average the channels")
    if waveform.size == 0:
        raise ValueError("audio must have samples, got none")
    if not np.issubdtype(waveform.dtype, np.floating):
        raise ValueError(f"audio must be floating point in [-1, 1], got {waveform.dtype}; divide by the type's range")
    if bad := int((~np.isfinite(waveform)).sum()):
        raise ValueError(f"{bad} of {waveform.size} audio samples are NaN or infinite; audio lies in [-1, 1]")
    return waveform.astype(np.float32)
