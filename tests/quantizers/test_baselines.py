"""VQ, SimVQ and FSQ do what their papers say."""

import sys

import pytest
import torch
from torch.nn.functional import mse_loss
from vector_quantize_pytorch import FSQ

from vpvae_hf import CodebookNotFittedError, build_quantizer


@pytest.mark.parametrize("symmetric", [True, False])
def test_fsq_codes_are_the_librarys(symmetric):
    settings = {"kind": "fsq", "levels": [8, 5, 4, 3], "symmetric": symmetric, "noise_probability": 0}
    features = 2 * torch.randn(1, 5000, 4, generator=torch.Generator().manual_seed(0))
    latents, codes = FSQ([8, 5, 4, 3], preserve_symmetry=symmetric)(features)
    output = build_quantizer(settings).eval()(features)
    assert torch.equal(output.codes, codes.long())
    torch.testing.assert_close(output.latents, latents)


def test_fsq_noise_is_as_wide_as_a_cell():
    """Of tokens that get noise the difference to tanh is uniform within half a cell: +-1/(L-1) in [-1, 1]."""
    built = build_quantizer({"kind": "fsq", "levels": [9, 3], "noise_probability": 1.0}).train()
    features = torch.randn(20_000, 2)
    moved = built(features, generator=torch.Generator().manual_seed(0)).latents - features.tanh()
    for noise, half in zip(moved.T, (1 / 8, 1 / 2), strict=True):
        assert noise.abs().max() <= half * (1 + 1e-5)
        # The standard error of the standard deviation of 20,000 uniform values is 0.3% of it.
        assert noise.std() == pytest.approx(half / 3**0.5, rel=0.015)


def test_fsq_mixes_noise_and_codes_token_by_token():
    built = build_quantizer({"kind": "fsq", "levels": [5, 5, 5], "noise_probability": 0.25}).train()
    features = torch.randn(20_000, 3)
    latents = built(features, generator=torch.Generator().manual_seed(0)).latents
    on_grid = torch.isclose(2 * latents, (2 * latents).round(), atol=1e-5).all(dim=-1)
    assert on_grid.float().mean() == pytest.approx(0.75, abs=0.015)  # 5 standard errors


def test_fsq_without_symmetry_takes_no_noise_and_no_two_levels():
    with pytest.raises(ValueError, match=r"noise_probability must be 0 if symmetric is false, got 0\.5"):
        build_quantizer({"kind": "fsq", "symmetric": False})
    with pytest.raises(ValueError, match="at least 3 if symmetric is false"):
        build_quantizer({"kind": "fsq", "symmetric": False, "noise_probability": 0, "levels": [2, 5]})


def test_vq_loss_is_that_of_the_paper():
    built = build_quantizer({"kind": "vq", "codebook_size": 32, "latent_dim": 2, "commitment_weight": 0.5}).train()
    features = torch.randn(100, 2)
    codebook = built.library.codebook.detach().clone()
    codes = torch.cdist(features, codebook).argmin(dim=1)
    output = built(features.requires_grad_())
    assert torch.equal(output.codes, codes)
    torch.testing.assert_close(output.latents, codebook[codes])
    torch.testing.assert_close(output.loss, 1.5 * mse_loss(features, codebook[codes]))
    output.loss.backward()
    # The commitment loss alone reaches the features, the codebook loss alone the codebook.
    torch.testing.assert_close(features.grad, 0.5 * 2 / features.numel() * (features - codebook[codes]).detach())
    assert built.library.codebook.requires_grad


def test_moving_average_carries_codes_to_the_means_of_their_latents():
    built = build_quantizer(
        {"kind": "vq", "codebook_size": 4, "latent_dim": 2, "update": "ema", "kmeans_start": True, "decay": 0.5}
    ).train()
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0], [8.0, 8.0]])

    def batch():
        return centers.repeat(100, 1) + torch.randn(400, 2, generator=generator)

    for _ in range(20):
        built(batch(), generator=generator)
    assert not list(built.parameters())
    found = built.library.codebook
    nearest = torch.cdist(centers, found).min(dim=1).values
    # Of 100 latents, averaged over about 3 batches, the mean is off by 0.08 in each of two dimensions.
    assert nearest.max() < 0.4


def test_codes_that_are_not_used_are_replaced():
    settings = {"kind": "vq", "codebook_size": 64, "latent_dim": 2, "update": "ema", "decay": 0.5}
    latents = 50 + torch.randn(1000, 2)  # far from where the codebook starts
    used = {}
    for replace_below in (0.0, 1.0):
        torch.manual_seed(0)
        built = build_quantizer({**settings, "replace_below": replace_below}).train()
        for _ in range(10):
            built(latents)
        used[replace_below] = len(built.eval().encode(latents).unique())
    assert used[0.0] < 10
    assert used[1.0] > 40


def test_a_codebook_that_starts_from_the_first_batch_has_no_codes_before_it():
    built = build_quantizer({"kind": "vq", "codebook_size": 8, "latent_dim": 2, "kmeans_start": True}).eval()
    with pytest.raises(CodebookNotFittedError, match="kmeans_start"):
        built.encode(torch.randn(3, 2))
    built.train()(torch.randn(100, 2))
    assert built.eval().encode(torch.randn(3, 2)).shape == (3,)


def test_simvq_learns_a_map_of_a_frozen_table():
    built = build_quantizer({"kind": "simvq", "codebook_size": 32, "latent_dim": 2, "commitment_weight": 0.5}).train()
    features = torch.randn(100, 2, requires_grad=True)
    output = built(features)
    codes = torch.cdist(features, built.library.codebook).argmin(dim=1)
    assert torch.equal(output.codes, codes)
    torch.testing.assert_close(output.loss, 1.5 * mse_loss(features, built.library.codebook[codes]))
    output.loss.backward()
    assert [name for name, _ in built.named_parameters()] == ["library.code_transform.weight"]
    assert built.library.code_transform.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["vq", "simvq", "fsq"])
def test_missing_library_is_named(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(ImportError, match=r"vpvae_hf\[baselines\]"):
        build_quantizer({"kind": kind})


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "simvq"},
        {"kind": "vq"},
        {"kind": "vq", "update": "ema", "kmeans_start": True, "replace_below": 0.1},
    ],
)
def test_the_learned_codebook_can_begin_with_a_fitted_one(settings):
    """Its first training forward quantizes to that, and training moves it from there."""
    built = build_quantizer(settings | {"codebook_size": 8, "latent_dim": 2})
    with pytest.raises(ValueError, match="training learns a codebook of 8 codes, but none is fitted"):
        built.learn_from_fit()
    built.set_codebook(torch.randn(5, 2))
    with pytest.raises(ValueError, match="the fitted one has 5; fit one of 8 first"):
        built.learn_from_fit()
    codebook = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    built.set_codebook(codebook)
    built.learn_from_fit()
    built.drop_fit()
    assert torch.equal(built.codebook, codebook)
    features = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    output = built.train()(features)
    assert torch.equal(output.codes, torch.cdist(features, codebook).argmin(dim=1))
    if output.loss.requires_grad:  # a moving average has moved already
        output.loss.backward()
        for weights in built.parameters():
            weights.data -= 0.1 * weights.grad
    torch.testing.assert_close(built.codebook, codebook, rtol=0, atol=0.3)
    assert not torch.equal(built.codebook, codebook)
