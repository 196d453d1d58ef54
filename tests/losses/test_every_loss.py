"""What holds for all losses, and for all losses with a network."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from vpvae_hf.losses import EFFICIENTNET, audio_losses, build_losses, features, image_losses, perceptual, whisper
from vpvae_hf.losses.features import load_feature_network
from vpvae_hf.losses.perceptual import load_lpips_network
from vpvae_hf.losses.whisper import load_whisper_features

WITH_NETWORK = pytest.mark.parametrize("case", ["lpips", "features", "backbone", "whisper"], indirect=True)


class Case(NamedTuple):
    """A loss by name, three pairs [3, ...] to compare, and what gives its network, also on a device."""

    name: str
    available: dict
    made: torch.Tensor
    original: torch.Tensor
    network: Callable
    network_on: Callable

    def build(self, **weights: float):
        return build_losses({self.name: 1.0, **weights}, self.available)

    @property
    def loss(self):
        return self.build()[self.name]


@pytest.fixture(params=["l1", "l2", "log_l2", "stft", "lpips", "features", "backbone", "whisper"])
def case(request) -> Case:
    if request.param == "lpips":
        request.getfixturevalue("lpips")
        pair = request.getfixturevalue("images")
        return Case(request.param, image_losses(), *pair, load_lpips_network, perceptual._network_on)
    if request.param in ("features", "backbone"):
        name = EFFICIENTNET if request.param == "features" else request.getfixturevalue("backbone")
        pair = request.getfixturevalue("images")
        available = image_losses(feature_network=name)
        return Case(
            "features",
            available,
            *pair,
            lambda: load_feature_network(name),
            lambda device: features._network_on(device, name),
        )
    folder, pair = request.getfixturevalue("whisper"), request.getfixturevalue("waveforms")
    return Case(
        request.param,
        audio_losses(whisper=folder),
        *pair,
        lambda: load_whisper_features(folder),
        lambda device: whisper._network_on(device, folder),
    )


def test_zero_if_equal_growing_with_noise_and_a_mean_over_items(case):
    alone = [case.loss(case.made[i : i + 1], case.original[i : i + 1]) for i in range(3)]
    assert alone[0] == 0
    assert 0 < alone[1] < alone[2]
    together = case.loss(case.made, case.original)
    assert together.shape == ()
    torch.testing.assert_close(together, torch.stack(alone).mean())
    if case.name != "stft":  # which is relative to the original
        torch.testing.assert_close(case.loss(case.original, case.made), together)


@pytest.mark.parametrize("case", ["stft", "whisper"], indirect=True)
def test_channels_are_waveforms_of_their_own(case):
    channels = [each.reshape(1, 3, -1) for each in (case.made, case.original)]
    torch.testing.assert_close(case.loss(*channels), case.loss(case.made, case.original))


@pytest.mark.parametrize("case", ["log_l2", "stft", "lpips", "features", "backbone", "whisper"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_precision_is_measured_in_float32(case, dtype):
    made, original = case.made.to(dtype), case.original.to(dtype)
    expected = case.loss(made.float(), original.float())
    assert expected.dtype == torch.float32
    assert torch.equal(case.loss(made, original), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(case.loss(made, original), expected)


@pytest.mark.parametrize("case", ["log_l2", "stft", "lpips", "features", "backbone", "whisper"], indirect=True)
def test_gradient_under_autocast(case):
    gradients = []
    for enabled in (False, True):
        made = case.made.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = case.loss(made, case.original)
        gradients += torch.autograd.grad(loss, made)
    assert torch.equal(*gradients)


@WITH_NETWORK
def test_gradient_leads_to_a_smaller_distance(case):
    made = case.made.clone().requires_grad_()
    loss = case.loss(made, case.original)
    loss.backward()
    assert made.grad.isfinite().all()
    # The first two are equal: no distance is smaller.
    assert made.grad[0].abs().max() == 0
    slope = made.grad.square().sum()
    with torch.no_grad():
        step = 0.001 * loss / slope
        smaller = case.loss(made - step * made.grad, case.original)
        assert float(loss - smaller) == pytest.approx(float(step * slope), rel=0.1)


@WITH_NETWORK
def test_network_is_frozen_in_eval_mode_and_belongs_to_no_model(case):
    model = torch.nn.Module()
    model.scale = torch.nn.Parameter(torch.tensor(0.9))
    model.losses = case.build(l1=1.0)
    made = model.scale * case.made
    values = {name: loss(made, case.original) for name, loss in model.losses.items()}
    assert list(values) == [case.name, "l1"]
    values[case.name].backward()
    assert model.scale.grad.abs() > 0
    assert set(model.state_dict()) == {"scale"}
    parameters = list(case.network().parameters())
    assert len(parameters) > 15
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in parameters)
    assert not any(module.training for module in case.network().modules())


@WITH_NETWORK
def test_network_is_loaded_once_before_training_and_leaves_the_random_state(case):
    torch.manual_seed(6)
    before = torch.get_rng_state()
    case.build()
    network = case.network()
    assert case.network() is network
    assert torch.equal(torch.get_rng_state(), before)


@WITH_NETWORK
def test_network_follows_a_device(case):
    moved = case.network_on(torch.device("meta"))
    assert {tensor.device.type for tensor in [*moved.parameters(), *moved.buffers()]} == {"meta"}


@WITH_NETWORK
def test_network_first_used_in_inference_mode_still_trains(case):
    loss = case.loss
    for load in (load_lpips_network, load_whisper_features, load_feature_network):
        load.cache_clear()
    with torch.inference_mode():
        loss(case.made, case.original)
    assert not any(parameter.is_inference() for parameter in case.network().parameters())
    made = case.made.clone().requires_grad_()
    case.loss(made, case.original).backward()
    assert made.grad[1].abs().max() > 0


@pytest.mark.parametrize(
    ("case", "made", "original", "message"),
    [
        ("lpips", (2, 3, 32, 32), (1, 3, 32, 32), r"LPIPS compares .* of one shape, got \[2, 3, 32, 32\] and \[1, 3, "),
        (
            "lpips",
            (2, 4, 32, 32),
            None,
            r"with 1 channel \(grey\) or 3 \(RGB\), got 4 channels: do without LPIPS",
        ),
        ("lpips", (2, 3, 15, 32), None, r"at least 16 pixels a side, got \[2, 3, 15, 32\]"),
        ("lpips", (2, 3, 32, 15), None, r"at least 16 pixels a side, got \[2, 3, 32, 15\]"),
        ("stft", (2, 1, 2048), (2, 1, 2049), r"the STFT loss compares .* got \[2, 1, 2048\] and .*: crop or pad"),
        ("stft", (2, 2048), None, r"needs waveforms \[B, C, T\], got \[2, 2048\]: reshape mono waveforms to \[B, 1, T"),
        ("stft", (2, 1, 1024), None, "needs at least 1025 samples, got 1024: use longer segments, or do without"),
        ("whisper", (2, 1, 2048), (1, 1, 2048), r"the Whisper loss compares waveforms of one shape, got \[2, 1, 2048"),
        ("whisper", (1, 1, 0), None, r"takes 1 to 480000 samples \(30 s\) at once, got 0: use shorter segments"),
        ("whisper", (1, 1, 480001), None, r"at once, got 480001"),
    ],
    indirect=["case"],
)
def test_what_a_loss_can_not_compare(case, made, original, message):
    with pytest.raises(ValueError, match=message):
        case.loss(torch.zeros(made), torch.zeros(original or made))
