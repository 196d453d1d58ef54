"""Images and audio through one code; audio with a small stand-in for a tokenizer."""

import math
from functools import partial

import pytest
import torch
from speech import RATE, BlockCodec, MeanDifference, speech

from tiny import FSP, NONE, noise_images, tiny_vae
from vpvae_hf.codebook import fit_kmeans
from vpvae_hf.losses import perceptual
from vpvae_hf.metrics import (
    audio_quality,
    code_usage,
    evaluate_reconstruction,
    image_quality,
    lpips_distance,
    reconstruct,
)
from vpvae_hf.quantizers import CodebookNotFittedError, NoCodesError

NAMES = ("pesq", "stoi", "mel_distance")
QUALITY = partial(audio_quality, sampling_rate=RATE)


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    """Four clips whose length is no multiple of the codec's eight samples."""
    return torch.stack([speech(1.0, pitch=90 + 40 * seed, seed=seed)[:15_997] for seed in range(4)])[:, None]


@pytest.fixture(scope="module")
def codec(clips) -> BlockCodec:
    latents = BlockCodec().latent_vectors(clips).detach().flatten(0, -2)
    return BlockCodec(fit_kmeans(latents, 64).centroids)


def test_reconstructions_have_the_clips_length(codec, clips):
    made = reconstruct(codec, clips)
    assert made.quantized.shape == made.unquantized.shape == clips.shape
    assert made.codes.shape == made.squared_error.shape == (4, 2000)
    assert (made.unquantized - clips).square().mean() < (made.quantized - clips).square().mean()
    latents = codec.latent_vectors(clips)
    expected = (codec.quantize.codebook[made.codes] - latents).square().sum(dim=-1)
    torch.testing.assert_close(made.squared_error, expected.double())


def test_the_mode_is_left_as_it_was(codec, clips):
    for training in (True, False):
        codec.train(training)
        assert not reconstruct(codec, clips[:1]).quantized.requires_grad
        assert codec.training == training


def test_without_codes_there_are_no_refined_ones():
    with pytest.raises(NoCodesError, match="'none'"):
        evaluate_reconstruction(tiny_vae(NONE), [noise_images()], metric_fn=image_quality, refine_steps=2)


def test_metrics_are_means_over_clips(codec, clips):
    quality = evaluate_reconstruction(codec, clips.split(3), metric_fn=QUALITY, unquantized=NAMES)
    made = reconstruct(codec, clips)
    expected = {name: values.mean() for name, values in QUALITY(made.quantized, clips).items()}
    expected |= {f"{name}_unquantized": values.mean() for name, values in QUALITY(made.unquantized, clips).items()}
    expected["code_usage"] = code_usage(made.codes, 64)
    expected["perplexity"] = 64 * expected["code_usage"]
    expected["codes_used"] = len(made.codes.unique()) / 64
    expected["quantization_error_rms"] = made.squared_error.mean().sqrt()
    assert list(quality.metrics) == list(expected)
    assert quality.metrics == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)
    assert (quality.items, quality.tokens) == (4, 4 * 2000)
    assert quality.undefined == dict.fromkeys([*NAMES, *(f"{name}_unquantized" for name in NAMES)], 0)
    assert quality.item_values.keys() == quality.undefined.keys()
    for name, values in quality.item_values.items():
        assert (len(values), float(values.mean())) == (4, pytest.approx(quality.metrics[name], rel=1e-6))
    assert len(set(quality.item_values["stoi"].tolist())) == 4
    for name, sign in (("pesq", 1), ("stoi", 1), ("mel_distance", -1)):
        assert sign * quality.metrics[name] < sign * quality.metrics[f"{name}_unquantized"]


def test_clips_of_different_lengths_count_alike(codec, clips):
    batches = [clips[:1], clips[1:2, :, :12_000]]
    quality = evaluate_reconstruction(codec, batches, metric_fn=QUALITY)
    each = [evaluate_reconstruction(codec, [batch], metric_fn=QUALITY).metrics for batch in batches]
    for name in NAMES:
        assert quality.metrics[name] == pytest.approx((each[0][name] + each[1][name]) / 2, rel=1e-6)
    assert (quality.items, quality.tokens) == (2, 2000 + 1500)


def test_continuous_latents_are_measured_alone(codec, clips):
    both = evaluate_reconstruction(codec, [clips], metric_fn=QUALITY, unquantized=None)
    alone = evaluate_reconstruction(codec, [clips], metric_fn=QUALITY, quantized=False)
    assert alone.metrics == {name: both.metrics[f"{name}_unquantized"] for name in NAMES}
    assert reconstruct(codec, clips, unquantized=False).unquantized is None


def test_silence_is_left_out_and_counted(codec, clips):
    silence = torch.zeros(2, 1, clips.shape[-1])
    quality = evaluate_reconstruction(codec, [clips, silence], metric_fn=QUALITY, unquantized=("pesq",))
    spoken = evaluate_reconstruction(codec, [clips], metric_fn=QUALITY)
    assert quality.undefined == {"pesq": 2, "stoi": 2, "mel_distance": 0, "pesq_unquantized": 2}
    for name in ("pesq", "stoi"):
        assert quality.metrics[name] == pytest.approx(spoken.metrics[name], rel=1e-6)
    assert quality.items == 6
    assert quality.item_values["pesq"].isnan().tolist() == [False] * 4 + [True] * 2
    silent = evaluate_reconstruction(codec, [silence], metric_fn=QUALITY)
    assert math.isnan(silent.metrics["pesq"])
    assert silent.undefined["pesq"] == silent.items == 2


def test_a_given_codebook_is_used(codec, clips):
    codebook = codec.quantize.codebook[:16]
    quality = evaluate_reconstruction(BlockCodec(), [clips], codebook, metric_fn=QUALITY)
    expected = evaluate_reconstruction(BlockCodec(codebook), [clips], metric_fn=QUALITY)
    assert quality.metrics == pytest.approx(expected.metrics, rel=1e-6)
    full = evaluate_reconstruction(codec, [clips], metric_fn=QUALITY)
    assert full.metrics["quantization_error_rms"] < quality.metrics["quantization_error_rms"]


def test_what_cannot_be_measured(codec, clips):
    with pytest.raises(ValueError, match="no batches"):
        evaluate_reconstruction(codec, [], metric_fn=QUALITY)
    with pytest.raises(CodebookNotFittedError):
        evaluate_reconstruction(BlockCodec(), [clips], metric_fn=QUALITY)
    with pytest.raises(ValueError, match="gives no psnr; it gives pesq, stoi, mel_distance"):
        evaluate_reconstruction(codec, [clips], metric_fn=QUALITY, unquantized=("stoi", "psnr"))


def test_lpips_of_a_tokenizer_is_the_mean_over_images(photograph, monkeypatch):
    monkeypatch.setattr(perceptual, "load_lpips_network", MeanDifference)
    vae = tiny_vae(FSP)
    original = photograph[:, :256, 200:264].unflatten(1, (4, 64)).transpose(0, 1)
    quality = evaluate_reconstruction(vae, original.split(3), metric_fn=partial(image_quality, lpips=True))
    expected = lpips_distance(reconstruct(vae, original).quantized, original).mean()
    assert quality.metrics["lpips"] == pytest.approx(float(expected), rel=1e-5)
    plain = evaluate_reconstruction(vae, original.split(3), metric_fn=image_quality, unquantized=("psnr",))
    names = ["psnr", "ssim", "psnr_unquantized", "code_usage", "perplexity", "codes_used", "quantization_error_rms"]
    assert list(plain.metrics) == names
