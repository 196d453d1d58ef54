"""The perturbations have the properties that the method promises.

Two-sample tests compare the energy distance with its values for pairs of fresh samples (`null`). If perturbing leaves
the distribution unchanged, the distance exceeds all of 40 such values with probability 1/41.
"""

import math

import pytest
import torch
from latent_samples import energy_distance, gaussian, mixture

from vpvae_hf import build_quantizer
from vpvae_hf.neighbors import build_index
from vpvae_hf.quantizers import vp
from vpvae_hf.quantizers.vp_moves import acceptance_probability, metropolis, random_codebook, uniform_in_ball
from vpvae_hf.quantizers.vp_queue import LatentQueue

DIM, CODES, SAMPLES = 4, 64, 2000
QUEUE_PER_CODE = 16 * DIM
RANKS = {"density_rank": 8, "mass_rank": QUEUE_PER_CODE}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def queue(generator):
    return mixture(QUEUE_PER_CODE * CODES, DIM, generator)


@pytest.fixture
def null(generator):
    """The greatest of 40 energy distances between fresh samples of the mixture."""
    return max(energy_distance(mixture(SAMPLES, DIM, generator), mixture(SAMPLES, DIM, generator)) for _ in range(40))


def perturbed_often(queue, generator, always_accept, times=4):
    index = build_index(queue)
    latents = mixture(SAMPLES, DIM, generator)
    for _ in range(times):
        latents, _ = metropolis(latents, index, **RANKS, eta=1.0, always_accept=always_accept, generator=generator)
    return latents


def test_metropolis_leaves_a_mixture_as_it_is(queue, null, generator):
    moved = perturbed_often(queue, generator, always_accept=False)
    assert energy_distance(moved, mixture(SAMPLES, DIM, generator)) < null


def test_always_accepting_changes_the_mixture(queue, null, generator):
    """The same test, the same data: it tells the two apart, so passing it means something."""
    moved = perturbed_often(queue, generator, always_accept=True)
    assert energy_distance(moved, mixture(SAMPLES, DIM, generator)) > null


def drawn(latents, count, generator):
    queue = LatentQueue(*latents.shape)
    queue.push(latents)
    return queue.draw(count, latents.device, generator)


def test_random_codebook_leaves_the_density_nearly_as_it_is(queue, generator):
    """At share 1 the error of the density is below that of a shift by a tenth of a standard deviation."""
    parts = mixture(SAMPLES, DIM, generator).split(50)
    moved = torch.cat([random_codebook(part, drawn(queue, CODES, generator), share=1.0)[0] for part in parts])
    fresh = mixture(SAMPLES, DIM, generator)
    deviation = mixture(20_000, DIM, generator).std(dim=0)
    shifted = energy_distance(mixture(SAMPLES, DIM, generator) + 0.1 * deviation, fresh)
    assert energy_distance(moved, fresh) < shifted


def test_random_codebook_displacement_shrinks_with_codes_as_theory_says(generator):
    """High-resolution theory: root mean square ~ K^(-1/d). In d = 2, uniform points; within 5%."""
    points = torch.rand(80_000, 2, generator=generator)
    sizes = [64, 256, 1024, 4096]
    rms = []
    for size in sizes:
        latents = torch.rand(20_000, 2, generator=generator)
        parts = [random_codebook(part, drawn(points, size, generator), 1.0)[0] - part for part in latents.split(1000)]
        rms.append(float(torch.cat(parts).square().sum(dim=-1).mean().sqrt()))
    exponents = [math.log(b / a) / math.log(n / m) for a, b, m, n in zip(rms, rms[1:], sizes, sizes[1:], strict=False)]
    assert exponents == pytest.approx([-1 / 2] * 3, rel=0.05)
    # K uniform points per unit of area: the squared distance to the nearest has mean 1 / (pi K).
    assert rms[-1] == pytest.approx(1 / math.sqrt(math.pi * sizes[-1]), rel=0.03)


def test_random_codebook_share_scales_the_move(queue, generator):
    latents = mixture(100, DIM, generator)
    codebook = drawn(queue, CODES, generator)
    half, whole = (random_codebook(latents, codebook, share)[0] for share in (0.5, 1))
    torch.testing.assert_close(half - latents, (whole - latents) / 2)
    assert build_index(codebook).distances(whole, [1]).max() < 1e-5  # at share 1 it lands on drawn latents


@pytest.mark.parametrize("dim", [1, 2, 5, 16])
def test_uniform_in_ball(dim, generator):
    """|u|^d is uniform on [0, 1] and directions cancel; errors of 3 standard deviations, 20,000 points."""
    points = uniform_in_ball(torch.Size([20_000, dim]), generator=generator)
    volume = points.norm(dim=-1) ** dim
    assert volume.max() <= 1 + 1e-6
    assert float(volume.mean()) == pytest.approx(0.5, abs=3 / math.sqrt(12 * 20_000))
    assert float(volume.var()) == pytest.approx(1 / 12, abs=3 / math.sqrt(180 * 20_000))
    assert points.mean(dim=0).abs().max() < 4 / math.sqrt(20_000 * dim)


def test_acceptance_is_zero_where_the_reverse_move_is_impossible(generator):
    near, radius, near_proposed, radius_proposed, move = torch.rand(5, 10_000, generator=generator).clamp_min(0.01)
    probability = acceptance_probability(near, radius, near_proposed, radius_proposed, move, dim=3)
    impossible = move > radius_proposed
    assert 0.3 < impossible.float().mean() < 0.9
    assert (probability[impossible] == 0).all()
    ratio = ((near * radius) / (near_proposed * radius_proposed)) ** 3
    torch.testing.assert_close(probability[~impossible], ratio.clamp(max=1)[~impossible], rtol=1e-4, atol=0)


def test_moves_stay_within_the_radius_both_ways(queue, generator):
    latents = mixture(SAMPLES, DIM, generator)
    index = build_index(queue)
    moved, accepted = metropolis(latents, index, **RANKS, eta=0.8, generator=generator)
    move = (moved - latents).norm(dim=-1)
    assert (move[~accepted] == 0).all()
    for end in (latents, moved):
        assert (move <= 0.8 * index.distances(end, [QUEUE_PER_CODE])[:, 0] + 1e-6).all()


def test_copies_of_one_latent_do_no_harm(generator):
    """Flat image regions give many equal latents, and so distances of zero."""
    queue = torch.cat([torch.zeros(3000, DIM), gaussian(1000, DIM, generator)])
    latents = torch.cat([torch.zeros(50, DIM), gaussian(50, DIM, generator)])
    moved, _ = metropolis(latents, build_index(queue), **RANKS, eta=1.0, generator=generator)
    assert torch.isfinite(moved).all()
    assert torch.equal(moved[:50], latents[:50])


def test_mass_rank_follows_the_queue_and_the_codebook_size(monkeypatch):
    """M = ceil(|S| / K), also after K changes at run time."""
    asked = []
    settings = {"kind": "vp", "perturbation": "metropolis", "codebook_size": 64, "latent_dim": 2, "queue_share": 1.0}
    quantizer = build_quantizer(settings | {"eta": 1.0})

    def recording(latents, index, *, mass_rank, **settings):
        asked.append((index.size, mass_rank))
        return metropolis(latents, index, mass_rank=mass_rank, **settings)

    monkeypatch.setattr(vp, "metropolis", recording)
    for size in (64, 16, 100):
        quantizer.set_codebook_size(size)
        for _ in range(40):
            quantizer(torch.randn(100, 2))
        points, mass_rank = asked[-1]
        assert mass_rank == math.ceil(points / size)
        assert points > 0.95 * 16 * size * 2  # full but for the refresh of the index


def test_codebook_sizes_are_drawn_anew_each_step(monkeypatch, generator):
    drawn_sizes = []

    def recording(latents, codebook, share):
        drawn_sizes.append(len(codebook))
        return random_codebook(latents, codebook, share)

    monkeypatch.setattr(vp, "random_codebook", recording)
    sizes = {"codebook_size": 32, "codebook_size_range": [16, 256], "latent_dim": 2, "queue_share": 1.0}
    built = build_quantizer({"kind": "vp", "perturbation": "random_codebook"} | sizes).train()
    for _ in range(400):
        metrics = built(gaussian(128, 2, generator), generator=generator).metrics
    assert built.queue.capacity == 16 * 256 * 2
    sizes = torch.tensor(drawn_sizes).log2()
    assert sizes.min() >= 4
    assert sizes.max() <= 8
    # Uniform on [4, 8]: of 390 draws the mean is off by 0.06, the deviation by 0.03; four of them.
    assert sizes.mean() == pytest.approx(6, abs=0.24)
    assert sizes.std() == pytest.approx(4 / 12**0.5, abs=0.12)
    # With one size the share is 0.70 +- 0.04 there.
    assert float(metrics["quantizer/share"]) == pytest.approx(0.7, abs=0.15)


def test_any_size_can_be_fitted_after_training_for_a_range():
    settings = {"kind": "vp", "codebook_size": 32, "latent_dim": 2, "perturbation": "random_codebook"}
    for size in (8, 32, 300):
        built = build_quantizer({**settings, "codebook_size_range": [16, 256]})
        built.set_codebook(torch.randn(size, 2))
        assert built.codebook_size == size
        assert built.queue.capacity == 16 * max(size, 256) * 2
