from functools import partial

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vpvae_hf import AutoencoderVP
from vpvae_hf.losses import perceptual
from vpvae_hf.metrics import evaluate_reconstruction, image_quality, lpips_distance, reconstruct

# Half of the 11-pixel window.
BORDER = 5


def noisy(original: torch.Tensor, *deviations: float) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(0))
    return (original + torch.tensor(deviations).view(-1, 1, 1, 1) * noise).clamp(-1, 1), original


@pytest.fixture(scope="module")
def photograph() -> torch.Tensor:
    return torch.from_numpy(data.astronaut().copy()).movedim(-1, 0).float() / 127.5 - 1


@pytest.fixture(scope="module")
def images(photograph) -> tuple[torch.Tensor, torch.Tensor]:
    """Four parts of a photograph with more and more noise, and without."""
    original = torch.stack([photograph[:, 64 * i : 64 * i + 64, 200:280] for i in range(4)])
    return noisy(original, 0.02, 0.05, 0.1, 0.3)


def unit_pairs(made: torch.Tensor, original: torch.Tensor):
    """[C, H, W] float64 in [0, 1], image by image."""
    return zip(*(((x.double() + 1) / 2).numpy() for x in (made, original)), strict=True)


def skimage_ssim(made: np.ndarray, original: np.ndarray) -> float:
    return structural_similarity(
        made,
        original,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=0,
        data_range=1,
    )


def test_psnr_equals_scikit_image(images):
    measured = image_quality(*images)["psnr"]
    expected = [peak_signal_noise_ratio(true, made, data_range=1) for made, true in unit_pairs(*images)]
    assert measured.shape == (4,)
    assert measured.dtype == torch.float32
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


def test_ssim_agrees_with_scikit_image(photograph, images):
    """scikit-image averages over the pixels whose window lies within the image, we over all of them.

    The difference is the border's share of the pixels, times how much SSIM differs there: a quarter of 64 x 80 pixels,
    a twenty-fifth of 512 x 512.
    """
    for pairs, tolerance in ((images, 0.05), (noisy(photograph[None], 0.1), 0.005)):
        measured = image_quality(*pairs)["ssim"]
        expected = [skimage_ssim(made, true) for made, true in unit_pairs(*pairs)]
        assert measured.shape == (len(expected),)
        assert measured.dtype == torch.float32
        np.testing.assert_allclose(measured, expected, rtol=0, atol=tolerance)


def test_ssim_equals_scikit_image_on_a_mirrored_border(images):
    """With the border mirrored outside the image, the pixels that scikit-image averages over are ours exactly."""
    margin = ((0, 0), (BORDER, BORDER), (BORDER, BORDER))
    expected = [
        skimage_ssim(*(np.pad(image, margin, mode="reflect") for image in pair)) for pair in unit_pairs(*images)
    ]
    np.testing.assert_allclose(image_quality(*images)["ssim"], expected, rtol=0, atol=1e-4)


def test_values_are_clipped(images):
    made, original = images
    beyond = torch.where(made > 0.5, made + 3, made)
    measured = image_quality(beyond, original)
    expected = image_quality(beyond.clamp(-1, 1), original)
    assert torch.equal(measured["psnr"], expected["psnr"])
    assert torch.equal(measured["ssim"], expected["ssim"])
    black = -torch.ones(1, 3, 16, 16)
    assert image_quality(black - 5, black)["psnr"].isinf().all()
    assert image_quality(black, black - 5)["ssim"] == pytest.approx(1)


def test_an_image_does_not_depend_on_the_others(images):
    together = image_quality(*images)
    for i in range(4):
        alone = image_quality(*(x[i : i + 1] for x in images))
        for name, values in together.items():
            assert alone[name].shape == (1,)
            assert float(alone[name]) == pytest.approx(float(values[i]), rel=1e-5)


def test_worst_and_best(images):
    white, black = torch.ones(2, 3, 11, 11), -torch.ones(2, 3, 11, 11)
    worst = image_quality(white, black)
    assert worst["psnr"].tolist() == [0, 0]
    assert worst["ssim"].max() < 1e-3
    best = image_quality(images[1], images[1])
    assert best["psnr"].isinf().all()
    assert torch.allclose(best["ssim"], torch.ones(4), atol=1e-5)


def test_half_precision_is_measured_in_float32(images):
    made, original = (x.bfloat16() for x in images)
    measured = image_quality(made, original)
    expected = image_quality(made.float(), original.float())
    for name in ("psnr", "ssim"):
        assert measured[name].dtype == torch.float32
        assert torch.equal(measured[name], expected[name])


class MeanDifference(torch.nn.Module):
    """In the place of LPIPS' network, which has tests of its own."""

    def forward(self, made: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        return (made - original).abs().mean(dim=(1, 2, 3), keepdim=True)


def test_lpips_is_of_each_image_and_of_clipped_values(images, monkeypatch):
    monkeypatch.setattr(perceptual, "load_lpips_network", MeanDifference)
    made, original = images
    bright, dark = made > 0.5, original < 0
    measured = lpips_distance(torch.where(bright, made + 3, made), torch.where(dark, original - 3, original))
    expected = (torch.where(bright, 1, made) - torch.where(dark, -1, original)).abs().mean(dim=(1, 2, 3))
    assert measured.shape == (4,)
    torch.testing.assert_close(measured, expected)


def test_lpips_of_a_tokenizer_is_the_mean_over_images(images, monkeypatch):
    monkeypatch.setattr(perceptual, "load_lpips_network", MeanDifference)
    architecture = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderVP(**architecture, **blocks, quantizer={"kind": "fsp", "levels": [4, 4]})
    original = images[1][..., :64]
    quality = evaluate_reconstruction(vae, original.split(3), metric_fn=partial(image_quality, lpips=True))
    expected = lpips_distance(reconstruct(vae, original).quantized, original).mean()
    assert quality.metrics["lpips"] == pytest.approx(float(expected), rel=1e-5)
    plain = evaluate_reconstruction(vae, original.split(3), metric_fn=image_quality, unquantized=("psnr",))
    names = ["psnr", "ssim", "psnr_unquantized", "code_usage", "perplexity", "codes_used", "quantization_error_rms"]
    assert list(plain.metrics) == names
