import sys

import pytest
import torch

from vpvae_hf.losses import build_audio_losses, build_image_losses, multi_resolution_stft_loss

BUILDERS = {build_image_losses: "l1, l2, lpips", build_audio_losses: "l1, l2, stft, whisper"}


@pytest.fixture(params=BUILDERS, ids=["image", "audio"])
def build(request):
    return request.param


def test_losses_by_name_in_the_order_of_their_weights(build):
    reconstruction, original = torch.tensor([[1.0, 4.0]]), torch.tensor([[2.0, 1.0]])
    losses = build({"l2": 0.5, "l1": 2})
    values = {name: loss(reconstruction, original) for name, loss in losses.items()}
    assert list(values) == ["l2", "l1"]
    assert [float(value) for value in values.values()] == [(1 + 9) / 2, (1 + 3) / 2]


def test_a_weight_of_zero_leaves_a_loss_out_and_its_network_unloaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert list(build_image_losses({"l1": 1.0, "l2": 0.0, "lpips": 0})) == ["l1"]
    monkeypatch.setitem(sys.modules, "transformers", None)
    # Whisper's sampling rate and name matter to nobody but Whisper.
    losses = build_audio_losses({"stft": 1.0, "l1": 0, "whisper": 0}, whisper="/no/such/folder", sampling_rate=24000)
    assert losses == {"stft": multi_resolution_stft_loss}


@pytest.mark.parametrize(
    ("build", "name", "nearest"),
    [
        (build_image_losses, "lpipz", "lpips"),
        (build_image_losses, "L1", "l1"),
        (build_image_losses, "2", "l2"),
        (build_image_losses, "stft", None),
        (build_audio_losses, "wisper", "whisper"),
        (build_audio_losses, "sftf", "stft"),
        (build_audio_losses, "lpips", None),
    ],
)
def test_unknown_name(build, name, nearest):
    hint = f"did you mean '{nearest}'\\? " if nearest else ""
    message = f"no loss '{name}'; {hint}valid: {BUILDERS[build]}"
    with pytest.raises(ValueError, match=message):
        build({"l1": 1.0, name: 0.0})


@pytest.mark.parametrize("weight", [-1.0, -0.0001, float("nan"), float("inf"), -float("inf")])
def test_weight_that_weights_nothing(build, weight):
    with pytest.raises(ValueError, match=f"weight of loss 'l2' is {weight}: give a finite number of at least 0"):
        build({"l1": 1.0, "l2": weight})


@pytest.mark.parametrize("weights", [{}, {"l1": 0.0, "l2": 0}])
def test_no_loss(build, weights):
    with pytest.raises(
        ValueError, match=rf"no loss has a positive weight in \{{.*\}}: weight at least one of {BUILDERS[build]}"
    ):
        build(weights)


@pytest.mark.parametrize("sampling_rate", [8000, 24000])
def test_whisper_at_another_sampling_rate(sampling_rate):
    with pytest.raises(ValueError, match=f"have {sampling_rate} Hz, but Whisper hears 16000 Hz: train at 16000 Hz, or"):
        build_audio_losses({"l1": 1.0, "whisper": 1.0}, whisper="/no/such/folder", sampling_rate=sampling_rate)
