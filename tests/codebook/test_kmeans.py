import numpy as np
import pytest
import torch

from vpvae_hf.codebook import fit_kmeans, kmeans


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
    monkeypatch.setattr(kmeans, "_REPAIR_ROUNDS", 1)
    with pytest.raises(RuntimeError, match=r"\d+ of 500 clusters stayed empty after 1 repairs"):
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


def test_about_as_good_as_scikit_learn():
    from sklearn.cluster import KMeans

    latents = laplace(20_000, 4)
    reference = KMeans(256, n_init=1, random_state=0).fit(latents.numpy()).inertia_ / len(latents)
    assert fit_kmeans(latents, 256).distortion < 1.02 * reference


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
