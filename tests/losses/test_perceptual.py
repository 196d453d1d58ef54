import sys

import pytest
import torch
from networks import FILE_NAME, SEED, save_weights, vgg16_features

from vpvae_hf.losses import build_losses, image_losses, lpips_per_image
from vpvae_hf.losses.perceptual import load_lpips_network, lpips_loss


def unit_features(layers: torch.nn.Sequential, image: torch.Tensor) -> list[torch.Tensor]:
    """After the last ReLU before each pooling, with the usual constants of ImageNet's colours for images in [-1, 1]."""
    shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[..., None, None]
    x = (image - shift) / scale
    features = []
    for layer in layers:
        if isinstance(layer, torch.nn.MaxPool2d):
            features.append(x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt())
        x = layer(x)
    return features


def expected_distances(network, made: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Zhang et al. 2018, eq. (1)."""
    torch.manual_seed(SEED)
    layers = vgg16_features()
    linear = [network.get_parameter(f"lin{i}.model.1.weight").view(1, -1, 1, 1) for i in range(5)]
    terms = zip(linear, unit_features(layers, made), unit_features(layers, original), strict=True)
    return sum((weight * (a - b) ** 2).sum(dim=1).mean(dim=(1, 2)) for weight, a, b in terms)


@torch.no_grad()
def test_distance_is_the_papers(lpips, images):
    measured = lpips_per_image(*images)
    assert measured.shape == (3,)
    assert measured.dtype == torch.float32
    torch.testing.assert_close(measured, expected_distances(load_lpips_network(), *images), rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_grey_is_rgb_with_equal_channels(lpips, images):
    grey = [image[:, :1] for image in images]
    assert torch.equal(lpips_per_image(*grey), lpips_per_image(*(image.repeat(1, 3, 1, 1) for image in grey)))


def test_weights_that_can_not_be_downloaded(tmp_path, without_weights):
    file = tmp_path / "hub" / "checkpoints" / FILE_NAME
    with pytest.raises(OSError, match="LPIPS needs VGG16's weights") as caught:
        build_losses({"lpips": 1.0}, image_losses())
    assert f"download {without_weights} where there is a network and save it as {file}" in str(caught.value)
    file.parent.rmdir()
    save_weights(tmp_path)
    assert file.exists()
    assert build_losses({"lpips": 1.0}, image_losses())["lpips"] is lpips_loss


@pytest.mark.parametrize("missing", ["torchmetrics.image.lpip", "torchvision.models"])
def test_missing_package(missing, without_weights, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=f"needs torchmetrics and a torchvision .*{missing}.*pip install"):
        build_losses({"lpips": 1.0}, image_losses())


def test_torchvision_of_another_torch(tmp_path, monkeypatch):
    broken = tmp_path / "torchvision"
    broken.mkdir()
    broken.joinpath("__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"built for torch \d.*torchvision::nms does not exist.*from the index that"):
        build_losses({"lpips": 1.0}, image_losses())


def test_smallest_images(lpips):
    assert lpips_per_image(torch.ones(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)) > 0
