import tempfile
import weakref

import numpy as np
import pytest
import torch

from vpvae_hf.codebook import LatentShards, fit_kmeans, kmeans, latent_chunks
from vpvae_hf.codebook.seeding import SEEDINGS, draw_seeds


def laplace(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).laplace(size=(count, dim))).float()


def squared_distances(latents: torch.Tensor, centroids: torch.Tensor) -> np.ndarray:
    """[N, K] float64."""
    return ((latents.double().numpy()[:, None] - centroids.double().numpy()[None]) ** 2).sum(axis=2)


def test_same_seed_gives_the_same_centroids_to_the_bit():
    latents = laplace(3000, 4)
    first, again, other = (fit_kmeans(latents, 64, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.centroids, again.centroids)
    assert (first.distortion, first.iterations) == (again.distortion, again.iterations)
    assert not torch.equal(first.centroids, other.centroids)


@pytest.mark.parametrize("dim", [1, 4, 8])
def test_distortion_is_the_mean_squared_distance(dim):
    latents = laplace(2000, dim)
    fit = fit_kmeans(latents, 50)
    squares = squared_distances(latents, fit.centroids)
    assert fit.centroids.shape == (50, dim)
    assert fit.centroids.dtype == torch.float32
    assert fit.distortion == pytest.approx(squares.min(axis=1).mean(), rel=1e-5)
    assert len(set(squares.argmin(axis=1))) == 50


def test_centroids_are_near_the_means_of_their_clusters():
    latents = laplace(3000, 2)
    fit = fit_kmeans(latents, 16, max_iterations=300, tolerance=0)
    codes = squared_distances(latents, fit.centroids).argmin(axis=1)
    means = torch.stack([latents[torch.from_numpy(codes == code)].mean(dim=0) for code in range(16)])
    assert torch.allclose(fit.centroids, means, atol=1e-3)


def test_max_iterations_is_a_limit_and_tolerance_stops_before_it():
    latents = laplace(3000, 4)
    assert fit_kmeans(latents, 64, max_iterations=3, tolerance=0).iterations == 3
    assert fit_kmeans(latents, 64, tolerance=0.1).iterations < fit_kmeans(latents, 64, tolerance=1e-3).iterations < 50


def hard_latents(case: str) -> tuple[torch.Tensor, int]:
    """Latents, and a codebook size that is hard to reach without an empty cluster."""
    rng = np.random.default_rng(0)
    if case == "every distinct value is a code":
        latents, size = rng.normal(size=(300, 4))[np.arange(5000) % 300], 300
    elif case == "one value holds nearly all the mass":
        latents, size = np.concatenate([np.zeros((10_000, 4)), 1e-4 * rng.normal(size=(63, 4))]), 64
    elif case == "heavy tails":
        latents, size = rng.standard_cauchy(size=(4000, 2)) ** 3, 256
    elif case == "whole numbers in one dimension":
        latents, size = rng.normal(scale=20, size=(3000, 1)).round(), 64
    elif case == "too close together for faiss":
        latents, size = 1000 + rng.integers(8, size=(3000, 4)) * 2**-14, 500
        latents[::2] -= 2000  # two groups, so that none lies at the center
    elif case == "the same, and many copies of each":
        latents, size = 1 + (np.arange(3008) // 47)[:, None] * 2**-23, 64
    return torch.from_numpy(latents).float(), size


@pytest.mark.parametrize(
    "case",
    [
        "every distinct value is a code",
        "one value holds nearly all the mass",
        "heavy tails",
        "whole numbers in one dimension",
        "too close together for faiss",
        "the same, and many copies of each",
    ],
)
def test_no_cluster_is_empty(case):
    latents, size = hard_latents(case)
    fit = fit_kmeans(latents, size)
    squares = squared_distances(latents, fit.centroids)
    nearest = squares.min(axis=1, keepdims=True)
    assert len(fit.centroids.unique(dim=0)) == size
    assert (squares == nearest).any(axis=0).all()
    assert fit.distortion == pytest.approx(nearest.mean(), rel=1e-4, abs=1e-12)


def test_clusters_that_stay_empty_raise(monkeypatch):
    monkeypatch.setattr(kmeans, "_REPAIR_ROUNDS", 0)
    with pytest.raises(RuntimeError, match=r"\d+ of 500 clusters stayed empty after 0 repairs"):
        fit_kmeans(*hard_latents("too close together for faiss"))


@pytest.mark.parametrize("size", [1, 300])
def test_extreme_codebook_sizes(size):
    """One code, and as many as there are latents."""
    latents = laplace(300, 4)
    fit = fit_kmeans(latents, size)
    expected = float(latents.double().var(dim=0, correction=0).sum()) if size == 1 else 0.0
    assert fit.distortion == pytest.approx(expected, rel=1e-5)


def test_a_perfect_fit_stops_at_once():
    assert fit_kmeans(laplace(300, 4), 300).iterations <= 2


@pytest.mark.parametrize("seeding", ["rounds", "k-means++"])
def test_about_as_good_as_scikit_learn(seeding):
    from sklearn.cluster import KMeans

    latents = laplace(20_000, 4)
    reference = KMeans(256, n_init=1, random_state=0).fit(latents.numpy()).inertia_ / len(latents)
    assert fit_kmeans(latents, 256, seeding=seeding).distortion < 1.02 * reference


def test_latents_are_left_as_they_are():
    latents = laplace(500, 4).double().requires_grad_()
    before = latents.detach().clone()
    fit = fit_kmeans(latents, 8)
    assert torch.equal(latents.detach(), before)
    assert fit.centroids.dtype == torch.float32


def test_progress_is_shown_only_on_request(capsys):
    fit_kmeans(laplace(500, 4), 8)
    assert capsys.readouterr() == ("", "")
    fit_kmeans(laplace(500, 4), 8, progress=True)
    assert "K-means K=8" in capsys.readouterr().err


def test_more_codes_than_latents_raises():
    with pytest.raises(ValueError, match="codebook_size=11 is larger than the number of latents, 10"):
        fit_kmeans(laplace(10, 4), 11)


def test_more_codes_than_distinct_latents_raises():
    with pytest.raises(ValueError, match="codebook_size=11 is larger than the number of distinct latents, 10 of 50"):
        fit_kmeans(laplace(10, 4).repeat(5, 1), 11)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e19])
def test_latents_that_are_not_finite_or_too_large_raise(value):
    latents = laplace(50, 4)
    latents[3, 1] = value
    latents[4] = value
    with pytest.raises(ValueError, match="2 of 50 latents are NaN or infinite, or too large"):
        fit_kmeans(latents, 8)


@pytest.mark.parametrize("shape", [(50,), (5, 10, 4)])
def test_latents_that_are_no_matrix_raise(shape):
    with pytest.raises(ValueError, match=r"latents must be \[N, d\], got shape \(5"):
        fit_kmeans(torch.zeros(shape), 2)


@pytest.mark.parametrize("size", [0, -1])
def test_no_codes_raises(size):
    with pytest.raises(ValueError, match=f"codebook_size must be at least 1, got {size}"):
        fit_kmeans(laplace(10, 4), size)


@pytest.mark.parametrize("sample", ["normal", "laplace"])
def test_both_seedings_give_equal_distortion(sample):
    """Means over four seeds, after few iterations; within 1%. Even draws, not spread, are more than 5% worse."""
    rng = np.random.default_rng(0)
    latents = torch.from_numpy(getattr(rng, sample)(size=(40_000, 4))).float()
    means = {
        seeding: np.mean(
            [fit_kmeans(latents, 512, max_iterations=2, seeding=seeding, seed=s).distortion for s in range(4)]
        )
        for seeding in ("rounds", "k-means++")
    }
    assert means["rounds"] == pytest.approx(means["k-means++"], rel=0.01)


def test_seeds_are_spread_by_squared_distance():
    """One latent in a hundred lies far away, and those hold nearly all of the distortion: most seeds go there."""
    latents = laplace(10_000, 2)
    latents[:100] += 10_000 * torch.from_numpy(np.random.default_rng(1).normal(size=(100, 2))).float()
    for seeding in SEEDINGS:
        seeds = draw_seeds(latents, 80, seeding, seed=0)
        assert len(seeds.unique(dim=0)) == 80
        assert (seeds.abs().max(dim=1).values > 100).sum() >= 35


@pytest.mark.parametrize("seeding", SEEDINGS)
def test_a_sample_with_few_distinct_latents_gives_all_of_them(seeding):
    latents = laplace(20, 3).repeat(50, 1)
    seeds = draw_seeds(latents, 64, seeding, seed=0)
    assert torch.equal(seeds.unique(dim=0), latents.unique(dim=0))


def test_unknown_seeding_raises():
    with pytest.raises(ValueError, match="unknown seeding 'best'; valid: rounds, k-means\\+\\+"):
        fit_kmeans(laplace(10, 4), 2, seeding="best")


def test_many_codes_are_found_by_tree(monkeypatch):
    """The search by tree that serves many codes finds what faiss finds."""
    latents = laplace(4000, 3)
    expected = fit_kmeans(latents, 128, max_iterations=5)
    monkeypatch.setattr(kmeans, "_TREE_CODES", 100)
    found = fit_kmeans(latents, 128, max_iterations=5)
    assert found.distortion == pytest.approx(expected.distortion, rel=0.02)
    assert len(found.centroids.unique(dim=0)) == 128


@pytest.mark.parametrize("form", ["list", "generator", "shards"])
def test_pieces_give_what_the_whole_gives(form, tmp_path, monkeypatch):
    """To the bit where the seeds' sample holds all latents, although sums are made in other orders."""
    monkeypatch.setattr(latent_chunks, "CHUNK_LATENTS", 500)
    latents = laplace(1900, 4)
    pieces = list(latents.split(130))
    given = {"list": pieces, "generator": iter(pieces), "shards": None}[form]
    if form == "shards":
        given = LatentShards.write(tmp_path / "shards", iter(pieces))
    fit = fit_kmeans(given, 64)
    monkeypatch.setattr(latent_chunks, "CHUNK_LATENTS", 1 << 18)
    whole = fit_kmeans(latents, 64)
    assert torch.equal(fit.centroids, whole.centroids)
    assert fit.distortion == pytest.approx(whole.distortion, rel=1e-12)


def test_pieces_of_many_latents_give_as_good_a_codebook():
    latents = laplace(30_000, 4)
    whole = fit_kmeans(latents, 64).distortion
    assert fit_kmeans(list(latents.split(999)), 64).distortion == pytest.approx(whole, rel=0.02)


def test_a_generator_is_never_held_in_memory(monkeypatch):
    monkeypatch.setattr(latent_chunks, "CHUNK_LATENTS", 300)
    alive, most = weakref.WeakSet(), 0

    def pieces():
        nonlocal most
        for seed in range(60):
            piece = laplace(100, 4, seed)
            alive.add(piece)
            most = max(most, len(alive))
            yield piece

    assert fit_kmeans(pieces(), 16).centroids.shape == (16, 4)
    assert most <= 5


def test_the_spooled_copy_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fit_kmeans(iter([laplace(100, 4)]), 8)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="larger than the number of latents"):
        fit_kmeans(iter([laplace(100, 4)]), 101)
    assert list(tmp_path.iterdir()) == []


def test_an_iterator_that_is_used_up_raises():
    with pytest.raises(ValueError, match="no latents to write; was the iterator used up before"):
        fit_kmeans(iter([]), 8)


def test_pieces_of_different_dimensions_raise():
    with pytest.raises(ValueError, match=r"latents must be \[N, 4\], got shape \(50, 3\)"):
        fit_kmeans([laplace(50, 4), laplace(50, 3)], 8)
    with pytest.raises(ValueError, match=r"latents must be \[n, 4\] like the first, got shape \(50, 3\)"):
        fit_kmeans(iter([laplace(50, 4), laplace(50, 3)]), 8)


def test_outliers_leave_the_sums_of_the_others_exact():
    """Latents near 1 beside one at a million: means of clusters keep the digits of float32."""
    latents = torch.cat([1 + laplace(2000, 2) / 100, torch.full((1, 2), 1e6)])
    fit = fit_kmeans(latents, 2, max_iterations=20, tolerance=0)
    near = fit.centroids[fit.centroids[:, 0] < 10]
    torch.testing.assert_close(near[0].double(), latents[:-1].double().mean(dim=0), rtol=1e-7, atol=0)
