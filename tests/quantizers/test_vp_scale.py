"""The size of the perturbation against the quantization error it stands for."""

import copy
import functools

import pytest
import torch
from latent_samples import gaussian, laplace, mixture
from torch._subclasses.fake_tensor import FakeTensorMode

from vpvae_hf import build_quantizer, distributed
from vpvae_hf.codebook import fit_kmeans
from vpvae_hf.neighbors import nearest_point
from vpvae_hf.quantizers.vp_live_codebook import LiveCodebook
from vpvae_hf.quantizers.vp_scale import PerturbationScale
from vpvae_hf.tensors import deferred_checks

DIM = 4


def trained(perturbation, sample, codes, steps=20, seed=0, **settings):
    """A quantizer with a full queue that has seen batches of one distribution, and the metrics of the last ten."""
    generator = torch.Generator().manual_seed(seed)
    quantizer = build_quantizer(
        {"kind": "vp", "codebook_size": codes, "latent_dim": DIM, "perturbation": perturbation} | settings
    )
    quantizer.queue.push(sample(quantizer.queue.capacity, DIM, generator))
    metrics = [quantizer(sample(1024, DIM, generator), generator=generator).metrics for _ in range(steps)]
    return quantizer, metrics[-10:]


def rms(metrics, name):
    return float(torch.stack([row[f"quantizer/{name}_rms"].square() for row in metrics]).mean().sqrt())


@functools.cache
def error_of_a_fitted_codebook(sample, codes):
    generator = torch.Generator().manual_seed(1)
    codebook = fit_kmeans(sample(64 * codes, DIM, generator), codes).centroids
    errors, _ = nearest_point(sample(20_000, DIM, generator), codebook)
    return float(errors.square().mean().sqrt())


@pytest.mark.parametrize(("sample", "codes"), [(gaussian, 64), (laplace, 256), (mixture, 1024)])
@pytest.mark.parametrize("perturbation", ["metropolis", "random_codebook"])
def test_automatic_displacement_equals_the_quantization_error(perturbation, sample, codes):
    """Both figures agree within 5%, and within 8% with a codebook fitted and measured on fresh latents."""
    _, metrics = trained(perturbation, sample, codes)
    displacement, error = rms(metrics, "displacement"), rms(metrics, "quantization_error")
    assert displacement == pytest.approx(error, rel=0.05)
    assert displacement == pytest.approx(error_of_a_fitted_codebook(sample, codes), rel=0.08)


def test_always_accepting_has_both_figures_too():
    _, metrics = trained("always_accept", gaussian, 256, 20)
    assert rms(metrics, "displacement") == pytest.approx(rms(metrics, "quantization_error"), rel=0.05)


@pytest.mark.parametrize(
    ("perturbation", "name", "value"), [("metropolis", "eta", 0.5), ("random_codebook", "share", 0.3)]
)
def test_a_number_stays_as_given(perturbation, name, value):
    _, metrics = trained(perturbation, gaussian, 256, 12, **{name: value})
    assert all(row[f"quantizer/{name}"] == pytest.approx(value) for row in metrics)
    assert rms(metrics, "displacement") < 0.7 * rms(metrics, "quantization_error")


def test_scale_follows_another_codebook_size():
    quantizer, metrics = trained("metropolis", gaussian, 256, 20)
    before = rms(metrics, "displacement")
    quantizer.set_codebook_size(100)
    generator = torch.Generator().manual_seed(2)
    metrics = [quantizer(gaussian(2048, DIM, generator), generator=generator).metrics for _ in range(12)]
    after = rms(metrics[-5:], "displacement")
    assert after == pytest.approx(rms(metrics[-5:], "quantization_error"), rel=0.1)
    assert after > 1.15 * before


def test_unreachable_error_does_not_run_away():
    """With few codes no radius displaces enough: eta stays where most is displaced, however often it is measured."""
    _, metrics = trained("metropolis", gaussian, 16, 30, queue_share=0.1)
    displacement, error = rms(metrics, "displacement"), rms(metrics, "quantization_error")
    assert 0.5 * error < displacement < 0.95 * error
    assert all(row["quantizer/eta"] < 6 for row in metrics)


@pytest.mark.parametrize("perturbation", ["metropolis", "random_codebook"])
def test_collapsed_latents_do_not_stop_the_perturbation_for_good(perturbation):
    """Equal latents have no quantization error; when they vary again, so does the perturbation."""
    quantizer = build_quantizer(
        {"kind": "vp", "codebook_size": 64, "latent_dim": DIM, "perturbation": perturbation, "queue_share": 1.0}
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        quantizer(torch.zeros(1024, DIM), generator=generator)
    metrics = [quantizer(gaussian(1024, DIM, generator), generator=generator).metrics for _ in range(120)][-10:]
    assert rms(metrics, "displacement") == pytest.approx(rms(metrics, "quantization_error"), rel=0.2)


def test_the_rule_is_that_of_python_s_numbers_to_the_bit():
    generator, expected = torch.Generator().manual_seed(0), 0.88
    scale = PerturbationScale("auto", start=expected, bounds=(0.5, 1.0))
    error_ms = torch.tensor(0.3, dtype=torch.float64)
    displacements = (0.6 * torch.rand(300, generator=generator).double()).tolist()
    for displacement in [*displacements, 0.0, 1e-30, 1e30]:
        if displacement:
            expected = min(max(expected * (0.3 / displacement) ** 0.1, 0.5), 1.0)
        scale.observe(torch.tensor(displacement, dtype=torch.float64), error_ms)
        assert scale.state_dict()["value"] == expected
    assert type(scale.state_dict()["value"]) is float
    other = PerturbationScale("auto", start=1.0, bounds=(0.5, 1.0))
    other.load_state_dict({"value": 0.75, "found_at": 5, "bounds": (0.01, 1.0)})
    assert other.value == 0.75


@pytest.mark.parametrize(
    ("ranks", "pushed", "size", "due"),
    [
        (1, 1499, 1000, False),
        (1, 1500, 1000, True),
        (4, 1500, 1000, False),  # a quarter of the steps of one rank
        (4, 3000, 1000, True),
        (4, 2000, 2000, True),  # the queue has doubled
    ],
)
def test_searches_for_the_factor_do_not_grow_with_ranks(ranks, pushed, size, due, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    scale = PerturbationScale("auto", start=1.0)
    scale.load_state_dict({"value": 1.0, "found_at": 1000, "bounds": (0.5, 2.0)})
    assert scale.due(pushed, size) is due


def test_no_perturbation_before_the_queue_can_tell():
    quantizer = build_quantizer({"kind": "vp", "codebook_size": 256, "latent_dim": DIM})
    latents = torch.randn(500, DIM)
    output = quantizer(latents)
    assert torch.equal(output.latents, latents)
    assert output.metrics["quantizer/displacement_rms"] == 0
    assert output.metrics["quantizer/quantization_error_rms"].isnan()
    assert len(quantizer.queue) == 500  # all of the first batches enters, then a share
    assert torch.equal(quantizer(latents).latents, latents)
    assert not torch.equal(quantizer(latents).latents, latents)
    assert len(quantizer.queue) == 1000 + 5


@pytest.mark.parametrize("perturbation", ["metropolis", "random_codebook"])
def test_training_state_resumes_exactly(perturbation):
    """A quantizer restored from its state, K included, makes the same latents as the one that went on."""
    quantizer, _ = trained(perturbation, gaussian, 256, 10)
    other = build_quantizer(quantizer.config)
    quantizer.set_codebook_size(100)
    other.training_state.load_state_dict(copy.deepcopy(quantizer.training_state.state_dict()))
    assert other.codebook_size == 100
    assert torch.equal(other.queue.latents(), quantizer.queue.latents())
    for step in range(10):
        latents = gaussian(512, DIM, torch.Generator().manual_seed(step))
        ours, theirs = (q(latents, generator=torch.Generator().manual_seed(step)) for q in (quantizer, other))
        assert torch.equal(ours.latents, theirs.latents)
        assert ours.metrics == theirs.metrics


def test_a_queue_in_main_memory_is_drawn_from_where_training_is(monkeypatch):
    """The queue of a checkpoint is read into main memory."""

    class Drawn(Exception):
        pass

    def update(live, queue, device):
        raise Drawn(str(device))

    monkeypatch.setattr(LiveCodebook, "update", update)
    quantizer = build_quantizer({"kind": "vp", "codebook_size": 64, "latent_dim": DIM})
    quantizer.queue.push(gaussian(1000, DIM, torch.Generator().manual_seed(0)))
    with FakeTensorMode(allow_non_fake_inputs=True), deferred_checks(), pytest.raises(Drawn, match="cuda:0"):
        quantizer(torch.zeros(8, DIM, device="cuda"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codebook_size": 1}, "codebook_size must be an integer of at least 2, got 1"),
        ({"codebook_size_range": [64, 16], "perturbation": "random_codebook"}, "the lesser first"),
        ({"codebook_size_range": [16, 64], "perturbation": "metropolis"}, 'for perturbation "random_codebook"'),
        ({"latent_dim": 17}, "latent_dim must be an integer in 1..16, got 17"),
        ({"perturbation": "none"}, "unknown perturbation 'none'.*valid: random_codebook, metropolis, always_accept"),
        ({"eta": 0}, 'eta must be a positive number or "auto", got 0'),
        ({"share": 1.5}, r"share must be a number in \(0, 1\] or \"auto\", got 1.5"),
        ({"density_rank": 0}, "density_rank must be an integer of at least 1"),
        ({"queue_per_code": 1, "latent_dim": 1}, "1024 latents is too short.*raise queue_per_code"),
        (
            {
                **{"perturbation": "random_codebook", "codebook_size_range": [256, 4096]},
                **{"queue_per_code": 1, "latent_dim": 1},
            },
            "4096 latents is too short",
        ),
        ({"queue_share": 0.0}, "queue_share must be a number in .0, 1., got 0.0"),
        ({"search_backend": "annoy"}, "unknown search_backend 'annoy'.*valid: auto, torch, kdtree, triton, faiss"),
        ({"normalization": "all"}, "unknown normalization 'all'.*valid: each, whole"),
        ({"commitment_weight": -1}, "commitment_weight must be a number of at least 0, got -1"),
        ({"commitment_ramp": [0.7, 0.5]}, r"commitment_ramp must be two numbers in \[0, 1\], the smaller first, got"),
        ({"commitment_ramp": 0.5}, "commitment_ramp must be two numbers"),
        ({"variance_weight": float("nan")}, "variance_weight must be a number of at least 0, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_quantizer({"kind": "vp", **settings})


VARIANCES_1_AND_4 = torch.tensor([[1.0, 4.0], [3.0, 0.0]])  # and both means 2


@pytest.mark.parametrize(
    ("settings", "latents", "expected"),
    [
        ({"mean_weight": 0, "variance_weight": 0}, VARIANCES_1_AND_4, 0),
        ({}, VARIANCES_1_AND_4, 0.1 * (4 + 4) / 2 + 0.07 * (0 + 9) / 2),
        ({"normalization": "whole"}, VARIANCES_1_AND_4, 0.1 * (4 + 4) / 2 + 0.07 * (2.5 - 1) ** 2),
        ({"normalization": "whole"}, torch.tensor([[2.0**0.5, 0.0], [-(2.0**0.5), 0.0]]), 0),
    ],
)
def test_normalization_is_equation_11(settings, latents, expected):
    built = build_quantizer({"kind": "vp", "latent_dim": 2, "mean_weight": 0.1, "variance_weight": 0.07} | settings)
    assert float(built(latents).loss) == pytest.approx(expected, abs=1e-6)
