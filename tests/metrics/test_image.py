import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from speech import MeanDifference, noisy

from vpvae_hf.losses import perceptual
from vpvae_hf.metrics import image_quality, lpips_distance

# Half of the 11-pixel window.
BORDER = 5


@pytest.fixture(scope="module")
def images(photograph) -> tuple[torch.Tensor, torch.Tensor]:
    """Four parts of a photograph with more and more noise, and without."""
    original = torch.stack([photograph[:, 64 * i : 64 * i + 64, 200:280] for i in range(4)])
    return noisy(original, torch.tensor([0.02, 0.05, 0.1, 0.3]).view(-1, 1, 1, 1)).clamp(-1, 1), original


def unit_pairs(made: torch.Tensor, original: torch.Tensor):
    """[C, H, W] float64 in [0, 1], image by image."""
    return zip(*(((x.double() + 1) / 2).numpy() for x in (made, original)), strict=True)


def skimage_ssim(made: np.ndarray, original: np.ndarray) -> float:
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return structural_similarity(made, original, **window, channel_axis=0, data_range=1)


def test_psnr_equals_scikit_image(images):
    measured = image_quality(*images)["psnr"]
    expected = [peak_signal_noise_ratio(true, made, data_range=1) for made, true in unit_pairs(*images)]
    assert measured.shape == (4,)
    assert measured.dtype == torch.float32
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "shapes", [((0, 3, 16, 16),) * 2, ((1, 3, 16, 16), (1, 1, 16, 16)), ((3, 16, 16),) * 2], ids=str
)
def test_images_that_cannot_be_compared_are_refused(shapes):
    with pytest.raises(ValueError, match=r"two batches \[B, C, H, W\] of one shape and at least one image, got"):
        image_quality(*map(torch.zeros, shapes))


def test_images_too_small_for_ssim_are_refused():
    with pytest.raises(ValueError, match="images of 5 x 6 pixels have no SSIM; it takes at least 6 a side"):
        image_quality(*torch.rand(2, 1, 3, 5, 6))
    assert torch.isfinite(image_quality(*torch.rand(2, 1, 3, 6, 6))["ssim"]).all()


def test_ssim_agrees_with_scikit_image(photograph, images):
    """scikit-image averages over the pixels whose window lies within the image, we over all of them.

    The difference is the border's share of the pixels, times how much SSIM differs there: a quarter of 64 x 80 pixels,
    a twenty-fifth of 512 x 512.
    """
    whole = noisy(photograph[None], 0.1).clamp(-1, 1), photograph[None]
    for pairs, tolerance in ((images, 0.05), (whole, 0.005)):
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


def test_worst_and_best(images):
    white, black = torch.ones(2, 3, 11, 11), -torch.ones(2, 3, 11, 11)
    worst = image_quality(white, black)
    assert worst["psnr"].tolist() == [0, 0]
    assert worst["ssim"].max() < 1e-3
    best = image_quality(images[1], images[1])
    assert best["psnr"].isinf().all()
    assert torch.allclose(best["ssim"], torch.ones(4), atol=1e-5)


def test_lpips_is_of_each_image_and_of_clipped_values(images, monkeypatch):
    monkeypatch.setattr(perceptual, "load_lpips_network", MeanDifference)
    made, original = images
    bright, dark = made > 0.5, original < 0
    measured = lpips_distance(torch.where(bright, made + 3, made), torch.where(dark, original - 3, original))
    expected = (torch.where(bright, 1, made) - torch.where(dark, -1, original)).abs().mean(dim=(1, 2, 3))
    assert measured.shape == (4,)
    torch.testing.assert_close(measured, expected)
