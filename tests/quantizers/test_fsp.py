"""FSP: the grid on uniform latents, the activations, the noise."""

import math

import pytest
import torch

from vpvae_hf import build_quantizer
from vpvae_hf.quantizers.fsp import ACTIVATIONS

LEVELS = (8, 5, 4)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def uniform_latents(count, dim, generator):
    return (torch.rand(count, dim, generator=generator) - 0.5) * math.sqrt(12)


def fsp(**settings):
    return build_quantizer({"kind": "fsp", "levels": LEVELS, **settings})


def test_error_on_uniform_latents_is_that_of_the_cells(generator):
    """Mean squared error 1/(12 L^2) in units of [0, 1]; 400,000 latents, so three standard errors are 0.5%."""
    quantizer = fsp()
    latents = uniform_latents(400_000, 3, generator)
    quantized = quantizer.decode(quantizer.encode(latents))
    error = ((quantized - latents) / math.sqrt(12)).square().mean(dim=0)
    expected = torch.tensor([1 / (12 * level**2) for level in LEVELS])
    torch.testing.assert_close(error, expected, rtol=0.005, atol=0)


def test_every_code_is_used_equally_on_uniform_latents(generator):
    """Chi-squared of 160 counts: mean 159, standard deviation sqrt(318); within four of them."""
    quantizer = fsp()
    count = 200_000
    codes = quantizer.encode(uniform_latents(count, 3, generator))
    counts = torch.bincount(codes, minlength=quantizer.codebook_size).double()
    expected = count / quantizer.codebook_size
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = quantizer.codebook_size - 1
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


SAMPLES = {
    "tanh": lambda u: torch.logit(u) / 2,
    "sigmoid": torch.logit,
    "normal": lambda u: torch.special.ndtri(u),
    "laplace": lambda u: torch.where(u < 0.5, (2 * u).log(), -(2 * (1 - u)).log()),
    "cauchy": lambda u: torch.tan(math.pi * (u - 0.5)),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_makes_its_own_distribution_uniform(activation, generator):
    """Features drawn by the inverse distribution function come out uniform with unit variance, and their variance is
    the target of the normalization loss (within 2%, 200,000 draws)."""
    uniform = torch.rand(200_000, 3, generator=generator, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    features = SAMPLES[activation](uniform)
    latents = fsp(activation=activation).to_latents(features.float())
    torch.testing.assert_close(latents.double() / math.sqrt(12) + 0.5, uniform, atol=1e-5, rtol=0)
    assert float(latents.var()) == pytest.approx(1, rel=0.01)
    target = ACTIVATIONS[activation][1]
    if target is None:
        assert target is None
    else:
        assert float(features.var()) == pytest.approx(target, rel=0.02)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_rise_and_stay_finite_far_out(activation):
    features = torch.linspace(-200, 200, 2001)[:, None].expand(-1, 3).contiguous().requires_grad_()
    quantizer = fsp(activation=activation)
    latents = quantizer.to_latents(features)
    assert (latents.diff(dim=0) >= 0).all()
    latents.sum().backward()
    assert torch.isfinite(features.grad).all()
    codes = quantizer.encode(latents.detach())
    assert codes[0] == 0
    assert codes[-1] == quantizer.codebook_size - 1


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_noise_is_uniform_within_a_share_of_the_cell(eta, generator):
    quantizer = fsp(eta=eta, perturb_probability=1.0, activation="normal").train()
    features = torch.randn(50_000, 3, generator=generator)
    noise = (quantizer(features, generator=generator).latents - quantizer.to_latents(features)) / math.sqrt(12)
    half_width = torch.tensor([eta / (2 * level) for level in LEVELS])
    assert (noise.abs() <= half_width + 1e-6).all()
    inside = (quantizer.to_latents(features).abs() < math.sqrt(12) * (0.5 - half_width.max())).all(dim=-1)
    measured = noise[inside].square().mean(dim=0)
    torch.testing.assert_close(measured, half_width**2 / 3, rtol=0.03, atol=0)


def test_noise_that_leaves_the_grid_is_undone_in_that_dimension_alone(generator):
    features = torch.tensor([[20.0, 0.0, 0.0]]).expand(4000, 3)
    quantizer = fsp(perturb_probability=1.0).train()
    noise = quantizer(features, generator=generator).latents - quantizer.to_latents(features)
    moved = (noise != 0).float().mean(dim=0)
    # Half of the noise at the border leaves [0, 1]; three standard errors of 4000 coin flips are 0.024.
    assert float(moved[0]) == pytest.approx(0.5, abs=0.03)
    assert float(moved[1]) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_mixture_of_noise_and_rounding(probability, generator):
    quantizer = fsp(perturb_probability=probability, activation="normal").train()
    features = torch.randn(10_000, 3, generator=generator)
    latents = quantizer(features, generator=generator).latents
    centroids = quantizer.decode(quantizer.encode(quantizer.to_latents(features)))
    rounded = ((latents - centroids).abs() < 1e-5).all(dim=-1).float().mean()
    assert float(rounded) == pytest.approx(1 - probability, abs=0.02)


@pytest.mark.parametrize("activation", ["tanh", "cauchy"])
@pytest.mark.parametrize(
    ("settings", "progress", "committed"),
    [
        ({}, None, 0.0),
        ({}, 0.55, 0.0),
        ({}, 0.625, 0.5),
        ({}, 1.0, 1.0),
        ({"commitment_ramp": [0.0, 1.0]}, 0.25, 0.25),
        ({"commitment_weight": 0}, 1.0, 0.0),
    ],
)
def test_the_normalization_loss_gives_way_to_the_commitment_loss(settings, progress, committed, activation, generator):
    quantizer = fsp(activation=activation, **settings)
    if progress is not None:
        quantizer.set_progress(progress)
    features = torch.randn(500, 3, generator=generator) + 1
    target = ACTIVATIONS[activation][1]
    mean, variance = features.mean(dim=0), features.var(dim=0, correction=0)
    normalization = 0 if target is None else 0.1 * mean.square().mean() + 0.07 * (variance - target).square().mean()
    latents = quantizer.to_latents(features)
    commitment = 0.25 * (latents - quantizer.decode(quantizer.encode(latents))).square().mean()
    output = quantizer.train()(features, generator=generator)
    torch.testing.assert_close(output.loss, torch.as_tensor((1 - committed) * normalization + committed * commitment))
    assert float(output.metrics["quantizer/committed"]) == pytest.approx(committed)


def test_the_commitment_loss_draws_latents_to_the_middles_of_their_cells(generator):
    quantizer = fsp(commitment_ramp=[0.0, 0.0]).train()
    quantizer.set_progress(1.0)
    features = torch.randn(500, 3, generator=generator)

    def error():
        latents = quantizer.to_latents(features)
        return float((latents - quantizer.decode(quantizer.encode(latents))).square().mean())

    before = error()
    for _ in range(100):
        features = features.detach().requires_grad_()
        quantizer(features, generator=generator).loss.backward()
        features = features.detach() - 1000 * features.grad
    assert error() < 0.1 * before


def test_settings_that_were_saved_with_a_former_field():
    assert build_quantizer({"kind": "fsp", "variance_scale": 1.0}).config == build_quantizer({"kind": "fsp"}).config


def test_levels_follow_the_codebook_size():
    config = build_quantizer({"kind": "fsp", "codebook_size": 1024}).config
    assert (config.levels, config.codebook_size, config.latent_dim) == ((8, 5, 5, 5), 1000, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": [8, 5], "latent_dim": 3}, r"levels \(8, 5\) have 2 dimensions but latent_dim=3"),
        ({"levels": [8, 5], "codebook_size": 41}, "make 40 codes but codebook_size=41"),
        ({"levels": []}, "integers of at least 2"),
        ({"levels": 8}, "levels must be a list of integers, got 8"),
        ({"codebook_size": 10, "latent_dim": 4}, "codebook_size=10 is too small for latent_dim=4"),
        ({"codebook_size": "many"}, "codebook_size must be a positive integer, got 'many'"),
        ({"activation": "relu"}, "unknown activation 'relu'; valid: tanh, sigmoid"),
        ({"variance_scale": 0.5}, "variance_scale is no longer a setting of quantizer kind 'fsp'; leave it out"),
        ({"eta": -1}, "eta must be a positive number, got -1"),
        ({"commitment_weight": -1}, "commitment_weight must be a number of at least 0, got -1"),
        ({"commitment_ramp": [0.7, 0.5]}, r"commitment_ramp must be two numbers in \[0, 1\], the smaller first, got"),
        ({"perturb_probability": 2}, r"perturb_probability must be a number in \[0, 1\], got 2"),
        ({"fitted": False}, "fitted must be true: the kind .fsp. needs no fitting"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_quantizer({"kind": "fsp", **settings})
