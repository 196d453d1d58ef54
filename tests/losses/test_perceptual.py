import copy
import sys

import pytest
import torch
from untrained_torchvision import FILE_NAME, install, save_weights, vgg16_features

from vpvae_hf.losses import IMAGE_LOSSES, build_losses, lpips_per_image, perceptual
from vpvae_hf.losses.perceptual import load_lpips_network, lpips_loss

SEED = 5
URL = f"file:///no/such/folder/{FILE_NAME}"


def load_untrained(folder) -> torch.nn.Module:
    save_weights(folder, SEED)
    with pytest.MonkeyPatch.context() as patch:
        install(patch, folder, URL)
        return load_lpips_network()


@pytest.fixture
def empty_cache():
    load_lpips_network.cache_clear()
    yield
    load_lpips_network.cache_clear()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    load_lpips_network.cache_clear()
    yield load_untrained(tmp_path_factory.mktemp("torch"))
    load_lpips_network.cache_clear()


@pytest.fixture
def network(loaded, monkeypatch):
    """Also where a test before this one has emptied the cache."""
    monkeypatch.setattr(perceptual, "load_lpips_network", lambda: loaded)
    return loaded


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    original = torch.rand(3, 3, 32, 40, generator=generator) * 2 - 1
    noise = torch.tensor([0.0, 0.1, 0.5]).view(3, 1, 1, 1) * torch.randn(original.shape, generator=generator)
    return original + noise, original


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
def test_distance_is_the_papers(network, pair):
    measured = lpips_per_image(*pair)
    assert measured.shape == (3,)
    assert measured.dtype == torch.float32
    torch.testing.assert_close(measured, expected_distances(network, *pair), rtol=1e-4, atol=1e-7)


def test_zero_where_equal_symmetric_and_growing_with_noise(network, pair):
    made, original = pair
    distances = lpips_per_image(made, original)
    assert distances[0] == 0
    assert 0 < distances[1] < distances[2]
    torch.testing.assert_close(lpips_per_image(original, made), distances)
    assert float(lpips_loss(made, original)) == pytest.approx(float(distances.mean()))


def test_an_image_does_not_depend_on_the_others(network, pair):
    together = lpips_per_image(*pair)
    alone = torch.cat([lpips_per_image(*(x[i : i + 1] for x in pair)) for i in range(3)])
    torch.testing.assert_close(alone, together)


def test_gradient_leads_to_a_smaller_distance(network, pair):
    made, original = pair[0].clone().requires_grad_(), pair[1]
    loss = lpips_loss(made, original)
    loss.backward()
    assert made.grad.isfinite().all()
    # The first two images are equal: no distance is smaller.
    assert made.grad[0].abs().max() == 0
    slope = made.grad.square().sum()
    with torch.no_grad():
        step = 0.01 * loss / slope
        smaller = lpips_loss(made - step * made.grad, original)
        assert float(loss - smaller) == pytest.approx(float(step * slope), rel=0.1)


def test_network_is_frozen_in_eval_mode_and_never_trained(network, pair):
    made = pair[0].clone().requires_grad_()
    lpips_loss(made, pair[1]).backward()
    parameters = list(network.parameters())
    # 13 convolutions with biases, and 5 linear layers without.
    assert len(parameters) == 31
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in parameters)
    network.train(True)
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_precision_is_measured_in_float32(network, pair, dtype):
    made, original = (x.to(dtype) for x in pair)
    expected = lpips_per_image(made.float(), original.float())
    assert torch.equal(lpips_per_image(made, original), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lpips_per_image(made, original), expected)


def test_network_follows_a_device(network, monkeypatch):
    monkeypatch.setattr(perceptual, "load_lpips_network", lambda: copy.deepcopy(network))
    moved = perceptual._network_on(torch.device("meta"))
    assert {tensor.device.type for tensor in [*moved.parameters(), *moved.buffers()]} == {"meta"}


@pytest.mark.usefixtures("empty_cache")
def test_network_first_used_in_inference_mode_still_trains(pair, tmp_path):
    save_weights(tmp_path, SEED)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        install(patch, tmp_path, URL)
        lpips_per_image(*pair)
    made = pair[0].clone().requires_grad_()
    lpips_loss(made, pair[1]).backward()
    assert made.grad[1].abs().max() > 0


@pytest.mark.usefixtures("empty_cache")
def test_network_is_loaded_once_and_leaves_the_random_state(tmp_path):
    torch.manual_seed(SEED + 1)
    before = torch.get_rng_state()
    network = load_untrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert load_lpips_network() is network


@pytest.mark.usefixtures("empty_cache")
def test_losses_with_lpips_give_gradients_and_no_state(pair, tmp_path, monkeypatch):
    save_weights(tmp_path, SEED)
    install(monkeypatch, tmp_path, URL)
    model = torch.nn.Conv2d(3, 3, 1)
    model.losses = build_losses({"l1": 1.0, "lpips": 0.5}, IMAGE_LOSSES)
    values = {name: loss(model(pair[0]), pair[1]) for name, loss in model.losses.items()}
    assert list(values) == ["l1", "lpips"]
    assert all(value.shape == () for value in values.values())
    values["lpips"].backward()
    assert model.weight.grad.abs().max() > 0
    assert set(model.state_dict()) == {"weight", "bias"}


@pytest.mark.usefixtures("empty_cache")
def test_weights_that_can_not_be_downloaded(tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, URL)
    file = tmp_path / "hub" / "checkpoints" / FILE_NAME
    with pytest.raises(OSError, match="LPIPS needs VGG16's weights") as caught:
        build_losses({"lpips": 1.0}, IMAGE_LOSSES)
    assert f"download {URL} where there is a network and save it as {file}" in str(caught.value)
    file.parent.rmdir()
    save_weights(tmp_path, SEED)
    assert file.exists()
    assert build_losses({"lpips": 1.0}, IMAGE_LOSSES)["lpips"] is lpips_loss


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("missing", ["torchmetrics.image.lpip", "torchvision.models"])
def test_missing_package(missing, tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, URL)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=f"needs torchmetrics and a torchvision .*{missing}.*pip install"):
        build_losses({"lpips": 1.0}, IMAGE_LOSSES)


@pytest.mark.usefixtures("empty_cache")
def test_torchvision_of_another_torch(tmp_path, monkeypatch):
    broken = tmp_path / "torchvision"
    broken.mkdir()
    broken.joinpath("__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"built for torch \d.*torchvision::nms does not exist.*from the index that"):
        build_losses({"lpips": 1.0}, IMAGE_LOSSES)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 32, 32), r"needs RGB images .* got \[2, 1, 32, 32\]: repeat"),
        ((2, 4, 32, 32), r"needs RGB images .* got \[2, 4, 32, 32\]"),
        ((3, 32, 32), r"needs RGB images .* got \[3, 32, 32\]"),
        ((2, 3, 15, 32), r"at least 16 pixels a side, got \[2, 3, 15, 32\]"),
        ((2, 3, 32, 15), r"at least 16 pixels a side, got \[2, 3, 32, 15\]"),
    ],
)
def test_images_that_lpips_can_not_measure(shape, message):
    with pytest.raises(ValueError, match=message):
        lpips_loss(torch.zeros(shape), torch.zeros(shape))


def test_two_different_shapes():
    with pytest.raises(ValueError, match=r"of one shape, got \[2, 3, 32, 32\] and \[1, 3, 32, 32\]"):
        lpips_loss(torch.zeros(2, 3, 32, 32), torch.zeros(1, 3, 32, 32))


def test_smallest_images(network):
    assert lpips_per_image(torch.ones(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)) > 0
