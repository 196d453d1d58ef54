"""What holds for the metrics of images and of audio, and metrics of codes."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from speech import RATE, MeanDifference, noisy

from vpvae_hf.losses import perceptual
from vpvae_hf.metric_labels import metric_notes
from vpvae_hf.metrics import (
    METRIC_LABELS,
    audio_quality,
    code_usage,
    describe_metrics,
    image_grid,
    image_quality,
    metric_label,
    spectrogram_grid,
)


@pytest.fixture(params=["image", "audio"])
def measured(request, monkeypatch, clips, photograph):
    """(function, reconstructions, originals) of three items."""
    if request.param == "audio":
        return partial(audio_quality, sampling_rate=RATE), *clips
    monkeypatch.setattr(perceptual, "load_lpips_network", MeanDifference)
    original = torch.stack([photograph[:, 64 * i : 64 * i + 64, 200:280] for i in range(3)])
    return partial(image_quality, lpips=True), noisy(original, 0.1).clamp(-1, 1), original


def test_a_batch_is_its_items(measured):
    metric_fn, made, original = measured
    together = metric_fn(made, original)
    assert all(values.shape == (3,) and values.dtype == torch.float32 for values in together.values())
    for i in range(3):
        alone = metric_fn(made[i : i + 1], original[i : i + 1])
        bare = metric_fn(made[i, 0], original[i, 0]) if original.ndim == 3 else alone
        for name, values in together.items():
            assert alone[name].shape == (1,)
            assert float(alone[name]) == pytest.approx(float(values[i]), rel=1e-5)
            assert torch.equal(alone[name], bare[name])


def test_values_are_clipped(measured):
    metric_fn, made, original = measured
    made, original = 8 * made, 8 * original
    assert original.abs().max() > 2
    expected = metric_fn(made.clamp(-1, 1), original.clamp(-1, 1))
    result = metric_fn(made, original)
    assert all(torch.equal(result[name], expected[name]) for name in expected)


def test_half_precision_is_measured_in_float32(measured):
    metric_fn, made, original = measured
    made, original = made.bfloat16(), original.bfloat16()
    expected = metric_fn(made.float(), original.float())
    result = metric_fn(made.requires_grad_(), original)
    for name in expected.keys() - {"lpips"}:  # LPIPS leaves the dtype to its loss
        assert torch.equal(result[name], expected[name])


def test_each_metric_has_a_label(measured):
    metric_fn, made, original = measured
    assert metric_fn(made, original).keys() <= METRIC_LABELS.keys()


def test_notes_tell_what_was_left_out_and_what_pesq_is_that_of_noise():
    assert metric_notes({"pesq": 2.5, "stoi": 0.9}, {"pesq": 0, "stoi": 0}) == []
    undefined = metric_notes({"psnr": 20.0, "stoi": 0.9}, {"stoi_unquantized": 2, "stoi": 1})
    assert undefined == [
        "STOI is undefined for 1 of the items, which its mean leaves out.",
        "STOI without quantization is undefined for 2 of the items, which its mean leaves out.",
    ]
    for value in (None, math.nan):
        assert metric_notes({"pesq": value}, {}) == []
    (note,) = metric_notes({"pesq": 1.05}, {})
    assert note.startswith("PESQ (wide band) below 1.2 means little")


def test_labels():
    assert metric_label("psnr").heading == "PSNR, dB"
    assert metric_label("psnr").format(21.345) == "21.34 dB"
    assert metric_label("pesq_unquantized").heading == "PESQ (wide band) without quantization"
    assert metric_label("sharpness_unquantized").heading == "sharpness_unquantized"
    metrics = {"ssim": 0.5, "psnr": 20, "psnr_unquantized": 25, "perplexity": 3}
    description = "PSNR 20.00 dB (25.00 dB without quantization), SSIM 0.5000"
    assert describe_metrics(metrics, ["ssim", "psnr", "stoi"]) == description


@pytest.mark.parametrize(
    ("codes", "size", "expected"),
    [
        ([0] * 3, 1, 1),
        (list(range(7)) * 3, 7, 1),
        ([41] * 50, 100, 1 / 100),
        (list(range(8)) * 5, 16, 1 / 2),
        # Shares 1/2, 1/4, 1/4: the entropy is 3/2 ln 2.
        ([[0, 0], [3, 1]], 4, 2**1.5 / 4),
        ([4] * 7 + [2] * 2 + [0], 5, math.exp(-sum(share * math.log(share) for share in (0.7, 0.2, 0.1))) / 5),
    ],
)
def test_code_usage(codes, size, expected):
    assert code_usage(torch.tensor(codes), size) == code_usage(np.uint16(codes), size) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        (torch.empty(0, dtype=torch.long), ValueError, "code usage of no codes"),
        (np.array([3, 8], np.uint16), ValueError, r"codes must lie in 0\.\.7, got 8"),
        ([0.5], TypeError, "codes must be integers, got torch.float64"),
    ],
)
def test_code_usage_of_what_are_no_codes(codes, error, message):
    with pytest.raises(error, match=message):
        code_usage(codes, 8)


def test_metrics_take_arrays(measured):
    metric_fn, made, true = measured
    for name, values in metric_fn(made, true).items():
        torch.testing.assert_close(metric_fn(made.numpy(), true.numpy())[name], values, rtol=0, atol=0, equal_nan=True)
    for not_floating in (made > 0, made.numpy().astype("int16")):
        with pytest.raises(TypeError, match="must be floating point, got torch"):
            metric_fn(not_floating, true)


def test_pictures_take_arrays(clips):
    made, true = (batch[:1] for batch in clips)
    for grid in (image_grid, partial(spectrogram_grid, sampling_rate=RATE)):
        rows = [x.unflatten(-1, (100, -1)) for x in (made, true)] if grid is image_grid else [made, true]
        assert np.array_equal(grid([row.numpy() for row in rows]), grid(rows))
