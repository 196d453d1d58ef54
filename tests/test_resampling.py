"""Conversion of sampling rates."""

import numpy as np
import pytest

from vpvae_hf.resampling import resampled


def sine(frequency, rate, samples):
    return np.sin(2 * np.pi * frequency * np.arange(samples) / rate).astype(np.float32)


@pytest.mark.parametrize(("from_rate", "to_rate"), [(48000, 16000), (44100, 16000), (8000, 16000), (22050, 24000)])
def test_a_sine_keeps_frequency_phase_and_amplitude(from_rate, to_rate):
    made = resampled(sine(440, from_rate, from_rate // 2), from_rate, to_rate)
    assert made.dtype == np.float32
    assert len(made) == -(-(from_rate // 2) * to_rate // from_rate)
    inner = slice(200, -200)  # the filter sees zeros beyond the ends
    np.testing.assert_allclose(made[inner], sine(440, to_rate, len(made))[inner], atol=5e-3)


def test_what_the_new_rate_cannot_hold_is_removed():
    assert np.abs(resampled(sine(12000, 48000, 24000), 48000, 16000)[200:-200]).max() < 1e-3


def test_an_equal_rate_changes_nothing():
    waveform = sine(440, 16000, 100)
    assert resampled(waveform, 16000, 16000) is waveform


def test_rates_below_one():
    with pytest.raises(ValueError, match="at least 1 Hz, got 0 and 16000"):
        resampled(np.zeros(10), 0, 16000)
