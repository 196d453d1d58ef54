import sys

import pytest
import torch

from vpvae_hf.losses import build_losses


def test_losses_by_name_in_the_order_of_their_weights():
    reconstruction, original = torch.tensor([[1.0, 4.0]]), torch.tensor([[2.0, 1.0]])
    losses = build_losses({"l2": 0.5, "l1": 2})
    values = {name: loss(reconstruction, original) for name, loss in losses.items()}
    assert list(values) == ["l2", "l1"]
    assert [float(value) for value in values.values()] == [(1 + 9) / 2, (1 + 3) / 2]


def test_a_weight_of_zero_leaves_a_loss_out_and_its_network_unloaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert list(build_losses({"l1": 1.0, "l2": 0.0, "lpips": 0})) == ["l1"]


@pytest.mark.parametrize(("name", "nearest"), [("lpipz", "lpips"), ("L1", "l1"), ("2", "l2")])
def test_unknown_name(name, nearest):
    message = f"no loss '{name}': valid names are l1, l2, lpips; the nearest is '{nearest}'"
    with pytest.raises(ValueError, match=message):
        build_losses({"l1": 1.0, name: 0.0})


@pytest.mark.parametrize("weight", [-1.0, -0.0001, float("nan"), float("inf"), -float("inf")])
def test_weight_that_weights_nothing(weight):
    with pytest.raises(ValueError, match=f"weight of loss 'l2' is {weight}: give a finite number of at least 0"):
        build_losses({"l1": 1.0, "l2": weight})


@pytest.mark.parametrize("weights", [{}, {"l1": 0.0, "lpips": 0}])
def test_no_loss(weights):
    with pytest.raises(
        ValueError, match=r"no loss has a positive weight in \{.*\}: weight at least one of l1, l2, lpips"
    ):
        build_losses(weights)
