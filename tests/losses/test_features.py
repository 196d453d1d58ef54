"""The distance of features: by which networks, and on what images."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage.data import astronaut
from torch.nn.functional import interpolate
from transformers import (
    BertConfig,
    BertModel,
    BitImageProcessor,
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetBackbone,
)

from vpvae_hf.losses import build_losses, feature_distance_per_image, image_losses
from vpvae_hf.losses.features import load_feature_network


def photograph(side=128):
    image = torch.from_numpy(astronaut()).movedim(-1, 0)[None] / 127.5 - 1
    return interpolate(image, size=side, mode="area")


@torch.no_grad()
def test_it_tells_blur_from_noise_as_people_do():
    """Blur of a photograph is worse than noise of the same squared error."""
    image = photograph()
    blurred = interpolate(interpolate(image, scale_factor=0.25, mode="area"), scale_factor=4, mode="bilinear")
    error = (blurred - image).square().mean().sqrt()
    noisy = image + error * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    brighter = image + error
    distances = [float(feature_distance_per_image(each, image)) for each in (brighter, noisy, blurred)]
    assert distances[0] < distances[1]
    assert distances[0] < 0.5 * distances[2]
    assert float(feature_distance_per_image(image, image)) == 0


@torch.no_grad()
def test_a_backbone_is_measured_by_its_maps(backbone, images):
    network = ResNetBackbone.from_pretrained(backbone, out_indices=[1, 2]).eval()
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = []
    for made, original in zip(
        *(network((each / 2 + 0.5 - mean) / deviation).feature_maps for each in images), strict=True
    ):
        unit = [each / each.norm(dim=1, keepdim=True).clamp(min=1e-12) for each in (made, original)]
        expected.append((unit[0] - unit[1]).square().sum(dim=1).mean(dim=(1, 2)))
    measured = feature_distance_per_image(*images, network=backbone)
    torch.testing.assert_close(measured, torch.stack(expected).mean(dim=0))


def test_colours_are_normalized_as_the_folder_says(backbone):
    BitImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]).save_pretrained(backbone)
    network = load_feature_network(backbone)
    torch.testing.assert_close(network.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(network.deviation.flatten(), torch.tensor([0.5, 0.6, 0.7]))


def test_weights_that_are_missing(backbone):
    weights = load_file(f"{backbone}/model.safetensors")
    save_file({name: each for name, each in weights.items() if "stages.1" not in name}, f"{backbone}/model.safetensors")
    with pytest.raises(ValueError, match=r"lacks weights of ResNetBackbone: encoder.stages.1"):
        load_feature_network(backbone)
    Path(backbone, "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"the feature network '.*' cannot be loaded \(Error while deserializing"):
        load_feature_network(backbone)


def test_norms_that_only_backbones_have_may_be_missing(tmp_path, images):
    torch.manual_seed(0)
    config = ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
    ConvNextForImageClassification(config).save_pretrained(tmp_path)
    distances = feature_distance_per_image(*images, network=str(tmp_path))  # the first pair is equal
    assert distances[0] == 0
    assert (distances[1:] > 0).all()


@torch.no_grad()
def test_grey_is_rgb_with_equal_channels(images):
    grey = [image[:, :1] for image in images]
    expected = feature_distance_per_image(*(image.repeat(1, 3, 1, 1) for image in grey))
    assert torch.equal(feature_distance_per_image(*grey), expected)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match="pip install 'vpvae_hf\\[features\\]'"):
        build_losses({"features": 1.0}, image_losses())


def test_what_is_no_backbone(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(**small)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(features need a backbone, but it is of the type bert\): name eff"):
        load_feature_network(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    for name, error in ((str(tmp_path), ValueError), ("/no/such/folder", OSError), ("", OSError)):
        load_feature_network.cache_clear()
        with pytest.raises(error, match=f"the feature network '{name}' cannot be loaded .*: name efficientnet"):
            load_feature_network(name)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 3, 32, 32), (1, 3, 32, 40)], r"features compare images of one shape, got \[1, 3, 32, 32\] and"),
        ([(1, 3, 31, 40)] * 2, "at least 32 pixels a side, got 3 channels and 31 pixels"),
        ([(1, 4, 32, 32)] * 2, "features need images of 1 channel .*, got 4 channels and 32 pixels"),
        ([(3, 32, 32)] * 2, r"features need images \[B, C, H, W\], got \[3, 32, 32\]: add a dimension"),
    ],
)
def test_images_that_it_does_not_take(shapes, message):
    with pytest.raises(ValueError, match=message):
        feature_distance_per_image(*(torch.zeros(shape) for shape in shapes))
