"""Models on patches of pixels, and the linear transform that they start from."""

import numpy as np
import pytest
import torch
from skimage import data

from vpvae_hf import AutoencoderVP
from vpvae_hf.pixels import center_crop, scaled, to_pixel_values

NETWORK = {
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
    "sample_size": 32,
}


def made(latent_dim=3, **settings):
    torch.manual_seed(0)
    model = AutoencoderVP(
        **{**NETWORK, "block_out_channels": (16,), "patch_size": 4, **settings},
        quantizer={"kind": "none", "latent_dim": latent_dim},
    )
    return model.eval()


def photographs(side=64):
    pictures = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    return to_pixel_values(np.stack([center_crop(scaled(picture, side), side, side) for picture in pictures]))


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize(("patch_size", "widths"), [(4, (16,)), (2, (8, 16)), (1, (8, 8, 16))])
def test_a_token_stands_for_four_by_four_pixels(patch_size, widths, shortcut, tmp_path):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * len(widths), "block_out_channels": widths}
    blocks["up_block_types"] = ("UpDecoderBlock2D",) * len(widths)
    model = made(patch_size=patch_size, linear_shortcut=shortcut, **blocks)
    images = torch.rand(2, 3, 12, 20) * 2 - 1
    assert model.downsample_factor == 4
    assert model.encode(images).latents.shape == (2, 3, 3, 5)
    assert model(images).sample.shape == images.shape
    model.save_pretrained(tmp_path)
    loaded = AutoencoderVP.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(images).sample, model(images).sample)
    assert loaded.preprocessor().multiple == 4


def test_it_starts_without_a_loss_if_there_are_as_many_dimensions_as_values():
    model = made(latent_dim=12, patch_size=2, linear_shortcut=True)
    images = torch.rand(2, 3, 8, 6) * 2 - 1
    torch.testing.assert_close(model(images).sample, images, atol=1e-5, rtol=0)


def test_the_first_dimensions_hold_most_of_a_photograph_and_vary_by_about_one():
    images = photographs()
    errors = []
    for latent_dim in (1, 3, 6):
        model = made(latent_dim=latent_dim, linear_shortcut=True)
        errors.append((model(images).sample - images).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * float((images - images.mean(dim=(0, 2, 3), keepdim=True)).square().mean())
    deviations = model.encode(images).latents.std(dim=(0, 2, 3))
    assert ((deviations > 0.4) & (deviations < 2.5)).all()


def test_the_first_dimension_is_the_brightness():
    model, images = made(latent_dim=1, linear_shortcut=True), photographs()
    brightness = torch.nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 4)
    latents = model.encode(images).latents
    assert torch.corrcoef(torch.stack([latents.flatten(), brightness.flatten()]))[0, 1] > 0.9999


def test_training_reaches_network_and_transform():
    model, images = made(linear_shortcut=True).train(), photographs(32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # a network that starts at zero passes gradients on from the second step on
        optimizer.zero_grad()
        (model(images).sample - images).square().mean().backward()
        optimizer.step()
    assert [name for name, weight in model.named_parameters() if not weight.grad.any()] == []


def test_grey_pictures_and_more_features_than_values():
    model = made(latent_dim=4, patch_size=2, linear_shortcut=True, in_channels=1, out_channels=1)
    images = torch.rand(1, 1, 8, 8) * 2 - 1
    torch.testing.assert_close(model(images).sample, images, atol=1e-5, rtol=0)


def test_no_patch_size():
    with pytest.raises(ValueError, match="patch_size must be an integer of at least 1, got 0"):
        made(patch_size=0)
