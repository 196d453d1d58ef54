"""Waveforms to `input_values` and `padding_mask`."""

from collections import deque

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from tiny import RATE, tiny_codec
from vpvae_hf import VPCodecFeatureExtractor


@pytest.fixture
def extractor():
    return VPCodecFeatureExtractor(sampling_rate=RATE)


def wave(samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def test_waveforms_are_padded_at_the_end(extractor):
    batch = extractor([wave(300), wave(500)], sampling_rate=RATE, return_tensors="pt")
    assert batch["input_values"].shape == (2, 1, 500)
    assert batch["padding_mask"].sum(dim=1).tolist() == [300, 500]
    assert not batch["input_values"][0, 0, 300:].any()


@pytest.mark.parametrize("raw", [[0.5, -0.25, 0.0], [[0.5, -0.25, 0.0]], np.array([0.5, -0.25, 0.0]), [np.zeros(3)]])
def test_lists_and_other_precisions(extractor, raw):
    batch = extractor(raw, return_tensors="np")
    assert batch["input_values"].shape == (1, 1, 3)
    assert batch["input_values"].dtype == np.float32


@pytest.mark.parametrize(
    "shaped",
    [
        torch.from_numpy,
        lambda raw: torch.from_numpy(raw).requires_grad_(),
        lambda raw: raw[None],
        lambda raw: raw[:, None],
        lambda raw: [torch.from_numpy(raw)[None, None]],
        lambda raw: np.flip(np.flip(raw).copy()),
        lambda raw: raw.astype(">f8"),
        lambda raw: raw.astype(object),
    ],
)
def test_waveforms_of_other_shapes_and_kinds(extractor, shaped):
    raw = wave(300)
    values = extractor(shaped(raw), return_tensors="np")["input_values"]
    np.testing.assert_array_equal(values, raw[None, None])


def test_lengths_may_be_chosen(extractor):
    both = [wave(300), wave(500)]
    longer = extractor(both, padding="max_length", max_length=960, return_tensors="pt")
    assert longer["input_values"].shape == (2, 1, 960)
    assert longer["padding_mask"].sum(dim=1).tolist() == [300, 500]
    cut = extractor(both, truncation=True, max_length=200, return_tensors="pt")
    assert cut["input_values"].shape == (2, 1, 200)
    assert cut["padding_mask"].all()
    as_they_are = extractor(both, padding=False)
    assert [values.shape for values in as_they_are["input_values"]] == [(1, 300), (1, 500)]
    assert "padding_mask" not in as_they_are


def test_loudness_and_silence_stay_as_they_are(extractor):
    quiet = extractor(1e-4 * wave(400), sampling_rate=RATE, return_tensors="np")["input_values"]
    np.testing.assert_array_equal(quiet[0, 0], (1e-4 * wave(400)).astype(np.float32))
    assert not extractor(np.zeros(400, np.float32), return_tensors="np")["input_values"].any()


def test_another_rate_is_converted_only_when_asked(extractor):
    time = np.arange(4800) / 48000
    sine = np.sin(2 * np.pi * 440 * time)
    with pytest.raises(ValueError, match="works at 16000 Hz, the audio has 48000 Hz; resample it, or give"):
        extractor(sine, sampling_rate=48000)
    values = extractor(sine, sampling_rate=48000, resample=True, return_tensors="np")["input_values"][0, 0]
    inner = slice(100, -100)
    np.testing.assert_allclose(values[inner], np.sin(2 * np.pi * 440 * np.arange(1600) / RATE)[inner], atol=5e-3)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        *(
            (
                kind((2, 100)),
                r"must be mono, \[T\], got shape \(2, 100\), which looks .*; give clips .* and channels as",
            )
            for kind in (np.zeros, torch.zeros)
        ),
        ([np.zeros((100, 2))], r"must be mono, \[T\], got shape \(100, 2\)"),
        (np.zeros(0), r"the batch is empty: audio samples of shape \(0,\)"),
        (np.full(99, 8000.0), "samples reach from 8000 to 8000, beyond the limit of 10.*divide samples of 16 bits"),
        ({"array": np.zeros(9), "sampling_rate": RATE}, "got dict, which holds array, sampling_rate: give one of"),
        (["a.wav"], "got str; open files"),
        (np.array([0.0, np.nan, np.inf]), "2 of 3 audio samples are NaN or infinite"),
        (np.zeros(100, np.int16), "must be floating point, got torch.int16; divide samples of 16 bits by 32768"),
    ],
)
def test_bad_audio(extractor, raw, message):
    with pytest.raises((TypeError, ValueError), match=message):
        extractor(raw, sampling_rate=RATE)


@pytest.mark.parametrize("rate", ["16000", 0, 8000.5, True])
@pytest.mark.parametrize("resample", [True, False])
def test_rates_that_are_none(extractor, rate, resample):
    with pytest.raises(ValueError, match=f"sampling_rate must be an integer of at least 1, got {rate!r}"):
        extractor(wave(9), sampling_rate=rate, resample=resample)


@pytest.mark.parametrize(
    "batch",
    [
        lambda clips: clips[:, None],
        lambda clips: torch.from_numpy(clips)[:, None],
        lambda clips: datasets.Dataset.from_dict({"clip": clips.tolist()})["clip"],
        lambda clips: datasets.Dataset.from_dict({"clip": clips.tolist()}).with_format("torch")["clip"],
        deque,
        lambda clips: np.array([*clips, None], dtype=object)[:2],
    ],
)
def test_batches_of_every_kind(extractor, batch):
    clips = np.stack([wave(300), wave(300, seed=1)])
    values = extractor(batch(clips), return_tensors="np")["input_values"]
    np.testing.assert_array_equal(values, clips[:, None])


def test_it_is_saved_with_the_codec_and_fits_it(tmp_path):
    codec = tiny_codec(sampling_rate=8000)
    codec.save_pretrained(tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert isinstance(extractor, VPCodecFeatureExtractor)
    assert extractor.sampling_rate == 8000
    batch = extractor([wave(500), wave(301)], sampling_rate=8000, return_tensors="pt")
    output = codec(**batch)
    assert output.audio_values.shape == (2, 1, 500)
    assert not output.audio_values[1, 0, 301:].any()
    decoded = codec.decode(codec.encode(**batch).audio_codes, batch["padding_mask"]).audio_values
    torch.testing.assert_close(decoded, output.audio_values, atol=1e-5, rtol=0)
