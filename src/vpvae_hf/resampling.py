"""Converts audio from one sampling rate to another."""

import math

import numpy as np


def resampled(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """A waveform [T] at another rate in Hz, [ceil(T * to_rate / from_rate)], in its dtype; scipy's polyphase filter."""
    if min(from_rate, to_rate) < 1:
        raise ValueError(f"sampling rates must be at least 1 Hz, got {from_rate} and {to_rate}")
    if from_rate == to_rate:
        return waveform
    from scipy.signal import resample_poly  # the import takes a second, and most files do not need it

    divisor = math.gcd(from_rate, to_rate)
    return resample_poly(waveform, to_rate // divisor, from_rate // divisor).astype(waveform.dtype)
