import itertools
import math
import sys

import numpy as np
import pystoi
import pytest
import torch
from pesq import pesq
from speech import RATE, noisy, speech

from vpvae_hf.metrics import audio_quality, log_mel_spectrogram, mel_distance, pesq_score, stoi_score


def test_pesq_and_stoi_are_those_of_their_packages(clips):
    made, original = (x[:, 0].numpy() for x in clips)
    measured = audio_quality(*clips, RATE)
    assert list(measured) == ["pesq", "stoi", "mel_distance"]
    assert all(values.shape == (3,) and values.dtype == torch.float32 for values in measured.values())
    expected = [pesq(RATE, true, degraded, "wb") for true, degraded in zip(original, made, strict=True)]
    np.testing.assert_allclose(measured["pesq"], expected, rtol=1e-6)
    expected = [pystoi.stoi(true, degraded, RATE) for true, degraded in zip(original, made, strict=True)]
    np.testing.assert_allclose(measured["stoi"], expected, rtol=1e-6)


def slaney_mel(frequency: np.ndarray) -> np.ndarray:
    """15 mel at 1 kHz, linear below and logarithmic above, 27 mel for a factor of 6.4."""
    logarithmic = 15 + 27 * np.log(np.maximum(frequency, 1) / 1000) / np.log(6.4)
    return np.where(frequency < 1000, frequency * 3 / 200, logarithmic)


def log_mel_by_hand(wave: np.ndarray, rate: int) -> np.ndarray:
    """The protocol as `log_mel_spectrogram` states it, in float64."""
    window, hop = round(0.064 * rate), round(0.016 * rate)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(wave.astype(float), window // 2)
    starts = range(0, len(padded) - window + 1, hop)
    magnitudes = np.abs([np.fft.rfft(hann * padded[start : start + window]) for start in starts]).T
    hertz = np.linspace(0, rate / 2, 1_000_001)
    edges = np.interp(np.linspace(0, slaney_mel(np.array(rate / 2)), 82), slaney_mel(hertz), hertz)
    frequencies = np.arange(len(magnitudes)) * (rate / 2) / (len(magnitudes) - 1)
    bands = [
        np.interp(frequencies, [low, centre, high], [0, 2 / (high - low), 0])
        for low, centre, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True)
    ]
    return np.log(np.maximum(np.array(bands) @ magnitudes, 1e-5))


@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_the_spectrogram_is_the_one_that_is_stated(rate, clips):
    wave = clips[0][1, :, :5000]
    measured = log_mel_spectrogram(wave, rate)
    assert measured.shape == (1, 80, 1 + 5000 // round(0.016 * rate))
    np.testing.assert_allclose(measured[0], log_mel_by_hand(wave[0].numpy(), rate), atol=2e-3)


def test_mel_distance_by_hand(clips):
    measured = mel_distance(*clips, RATE)
    for made, true, distance in zip(clips[0][:, 0].numpy(), clips[1][:, 0].numpy(), measured, strict=True):
        expected = np.abs(log_mel_by_hand(made, RATE) - log_mel_by_hand(true, RATE)).mean()
        assert float(distance) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "worse"), [("pesq", torch.less), ("stoi", torch.less), ("mel_distance", torch.greater)]
)
def test_more_noise_is_worse(name, worse, clips):
    levels = [clips[1], *(noisy(clips[1], deviation) for deviation in (0.001, 0.005, 0.03, 0.2))]
    values = [audio_quality(made, clips[1], RATE)[name] for made in levels]
    assert all(worse(after, before).all() for before, after in itertools.pairwise(values))


def test_the_best(clips):
    best = audio_quality(clips[1], clips[1], RATE)
    torch.testing.assert_close(best["pesq"], torch.full((3,), 4.6439), atol=1e-3, rtol=0)
    torch.testing.assert_close(best["stoi"], torch.ones(3))
    assert best["mel_distance"].tolist() == [0, 0, 0]


SILENCE = torch.zeros(1, 1, RATE)
SPEECH = speech(1.0)[None, None]
BROKEN = SPEECH.clone()
BROKEN[..., 500] = math.nan


@pytest.mark.parametrize(
    ("made", "original", "expected"),
    [
        (SPEECH, SILENCE, {"pesq": None, "stoi": None}),
        (SILENCE, SILENCE, {"pesq": None, "stoi": None, "mel_distance": 0}),
        (SILENCE, SPEECH, {"pesq": None, "stoi": 0}),
        (BROKEN, SPEECH, {"pesq": None, "stoi": None, "mel_distance": None}),
        (SPEECH, BROKEN, {"pesq": None, "stoi": None, "mel_distance": None}),
    ],
    ids=["original silent", "both silent", "reconstruction silent", "reconstruction NaN", "original NaN"],
)
def test_what_is_not_defined_is_nan(made, original, expected):
    """An expected None stands for NaN; metrics that are not named are finite."""
    measured = audio_quality(torch.cat([made, SPEECH]), torch.cat([original, SPEECH]), RATE)
    for name, values in measured.items():
        assert values[1].isfinite()
        if name not in expected:
            assert values[0].isfinite()
        else:
            wanted = math.nan if expected[name] is None else expected[name]
            assert float(values[0]) == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize(
    ("samples", "defined"),
    [
        (10, {"mel_distance"}),
        (3999, {"mel_distance"}),
        (4000, {"pesq", "mel_distance"}),
        (6300, {"pesq", "mel_distance"}),
        (12_000, {"pesq", "stoi", "mel_distance"}),
    ],
)
def test_short_clips(samples, defined):
    original = speech(1.0)[:samples]
    measured = audio_quality(noisy(original, 0.01), original, RATE)
    assert {name for name, values in measured.items() if values.isfinite().all()} == defined
    assert all(values.isfinite().all() or values.isnan().all() for values in measured.values())


@pytest.mark.parametrize("rate", [8000, 24_000])
def test_pesq_has_one_rate(rate, clips):
    with pytest.raises(ValueError, match=f"is defined at 16000 Hz, got {rate} Hz: resample both"):
        pesq_score(*clips, rate)
    assert audio_quality(*clips, rate).keys() == {"stoi", "mel_distance"}
    assert stoi_score(*clips, rate).isfinite().all()
    assert mel_distance(*clips, rate).isfinite().all()


def test_a_long_clip_does_not_end_the_process():
    """These 100 utterances would: the package has room for 50 and then writes out of bounds."""
    long = speech(1.0).repeat(50)
    made = noisy(long, 0.01)
    parts = torch.cat(
        [pesq_score(*pair, RATE) for pair in zip(made.tensor_split(3), long.tensor_split(3), strict=True)]
    )
    assert parts.isfinite().all()
    torch.testing.assert_close(pesq_score(made, long, RATE), parts.mean(dim=0, keepdim=True))


def test_silent_parts_of_a_long_clip_are_left_out():
    clip = torch.cat([speech(10.0), torch.zeros(25 * RATE)])
    made = noisy(clip, 0.01)
    expected = pesq_score(made[: len(clip) // 2], clip[: len(clip) // 2], RATE)
    torch.testing.assert_close(pesq_score(made, clip, RATE), expected)


@pytest.mark.parametrize("measure", [pesq_score, stoi_score, mel_distance])
def test_shapes(measure):
    with pytest.raises(ValueError, match=r"got \[1, 1, 16008\] and \[1, 1, 16000\]: cut one"):
        measure(torch.zeros(1, 1, 16_008), SPEECH, RATE)
    for shape in ((2, 16_000), (2, 2, 16_000)):
        with pytest.raises(ValueError, match=r"must be \[B, 1, T\], \[1, T\] or \[T\], got \[2, "):
            measure(torch.zeros(shape), torch.zeros(shape), RATE)


@pytest.mark.parametrize(("measure", "package"), [(pesq_score, "pesq"), (stoi_score, "pystoi")])
def test_a_missing_package_is_named_with_its_extra(measure, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'vpvae_hf\[audio\]'") as raised:
        measure(SPEECH, SPEECH, RATE)
    assert package in str(raised.value)
