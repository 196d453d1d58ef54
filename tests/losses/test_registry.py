import math
import sys

import pytest
import torch

from vpvae_hf.losses import audio_losses, build_losses, image_losses, multi_resolution_stft_loss

AVAILABLE = {
    "l1, l2, log_l2, lpips, features": image_losses(),
    "l1, l2, log_l2, stft, whisper": audio_losses(whisper="/no/such/folder"),
}


@pytest.fixture(params=AVAILABLE, ids=["image", "audio"])
def names(request):
    return request.param


def test_losses_by_name_in_the_order_of_their_weights(names):
    reconstruction, original = torch.tensor([[1.0, 4.0]]), torch.tensor([[2.0, 1.0]])
    losses = build_losses({"l2": 0.5, "l1": 2}, AVAILABLE[names])
    values = {name: loss(reconstruction, original) for name, loss in losses.items()}
    assert list(values) == ["l2", "l1"]
    assert [float(value) for value in values.values()] == [(1 + 9) / 2, (1 + 3) / 2]


def test_log_l2_counts_a_share_of_any_item_s_error_alike(names):
    (loss,) = build_losses({"log_l2": 1.0}, AVAILABLE[names]).values()
    errors = torch.tensor([0.2, 0.5]).view(2, 1, 1).expand(2, 1, 8)
    assert float(loss(errors, torch.zeros(2, 1, 8))) == pytest.approx(math.log((1 + 4e4) * (1 + 25e4)) / 2)


def test_a_weight_of_zero_leaves_a_loss_out_and_its_network_unloaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert list(build_losses({"l1": 1.0, "l2": 0.0, "lpips": 0}, image_losses())) == ["l1"]
    monkeypatch.setitem(sys.modules, "transformers", None)
    # Whisper's sampling rate and name matter to no other loss.
    available = audio_losses(whisper="/no/such/folder", sampling_rate=24000)
    assert build_losses({"stft": 1.0, "l1": 0, "whisper": 0}, available) == {"stft": multi_resolution_stft_loss}


def test_a_loss_of_ones_own():
    def slopes(reconstruction, original):
        return (reconstruction.diff() - original.diff()).abs().mean()

    (loss,) = build_losses({"slopes": 1.0}, {**image_losses(), "slopes": slopes}).values()
    assert float(loss(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 1.0]))) == 1


@pytest.mark.parametrize(("name", "nearest"), [("L1", "l1"), ("2", "l2"), ("mse", None)])
def test_unknown_name(names, name, nearest):
    hint = f"did you mean '{nearest}'\\? " if nearest else ""
    with pytest.raises(ValueError, match=f"no loss '{name}'; {hint}valid: {names}"):
        build_losses({"l1": 1.0, name: 0.0}, AVAILABLE[names])


@pytest.mark.parametrize("weight", [-0.0001, float("nan"), float("inf"), -float("inf")])
def test_weight_that_weights_nothing(weight):
    with pytest.raises(ValueError, match=f"weight of loss 'l2' is {weight}: give a finite number of at least 0"):
        build_losses({"l1": 1.0, "l2": weight}, image_losses())


@pytest.mark.parametrize("weights", [{}, {"l1": 0.0, "l2": 0}])
def test_no_loss(names, weights):
    message = rf"no loss has a positive weight in \{{.*\}}: weight at least one of {names}"
    with pytest.raises(ValueError, match=message):
        build_losses(weights, AVAILABLE[names])


def test_whisper_at_another_sampling_rate():
    with pytest.raises(ValueError, match="have 24000 Hz, but Whisper needs 16000 Hz: train at 16000 Hz, or"):
        build_losses({"l1": 1.0, "whisper": 1.0}, audio_losses(sampling_rate=24000))
