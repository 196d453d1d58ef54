import pickle

import numpy as np
import pytest
import torch

from tiny import arrays_like
from vpvae_hf.codebook import fit_kmeans, kmeans
from vpvae_hf.neighbors import nearest_point
from waits import waits


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


RNG, WHOLE = np.random.default_rng(0), np.arange(3008)[:, None]
CLOSE = 1000 + RNG.integers(8, size=(3000, 4)) * 2**-14
CLOSE[::2] -= 2000  # two groups, so that none lies at the center
# Latents, and a codebook size that is hard to reach without an empty cluster.
HARD = {
    "every distinct value is a code": (RNG.normal(size=(300, 4))[np.arange(5000) % 300], 300),
    "one value holds nearly all the mass": (np.pad(1e-4 * RNG.normal(size=(63, 4)), ((10_000, 0), (0, 0))), 64),
    "heavy tails": (RNG.standard_cauchy(size=(4000, 2)) ** 3, 256),
    "whole numbers in one dimension": (RNG.normal(scale=20, size=(3000, 1)).round(), 64),
    "too close together for faiss": (CLOSE, 500),
    "the same, and many copies of each": (1 + (WHOLE // 47) * 2**-23, 64),
}


@pytest.mark.parametrize("case", HARD)
def test_no_cluster_is_empty(case):
    latents, size = torch.from_numpy(HARD[case][0]).float(), HARD[case][1]
    fit = fit_kmeans(latents, size)
    squares = squared_distances(latents, fit.centroids)
    nearest = squares.min(axis=1, keepdims=True)
    assert len(fit.centroids.unique(dim=0)) == size
    assert (squares == nearest).any(axis=0).all()
    assert fit.distortion == pytest.approx(nearest.mean(), rel=1e-4, abs=1e-12)


def test_clusters_that_stay_empty_raise(monkeypatch):
    monkeypatch.setattr(kmeans, "_REPAIR_ROUNDS", 0)
    latents = laplace(100, 2)
    with pytest.raises(RuntimeError, match="1 of 4 clusters stayed empty after 0 repairs"):
        kmeans._Lloyd(latents, latents.device).settle(torch.cat([latents[:3], torch.full((1, 2), 1000.0)]))


@pytest.mark.parametrize("size", [1, 300])
def test_extreme_codebook_sizes(size):
    """One code, and as many as there are latents."""
    latents = laplace(300 if size > 1 else 256, 4)
    fit = fit_kmeans(latents, size)
    expected = float(latents.double().var(dim=0, correction=0).sum()) if size == 1 else 0.0
    assert fit.distortion == pytest.approx(expected, rel=1e-5)
    assert size == 1 or fit.iterations <= 2  # a perfect fit stops at once


def test_latents_are_left_as_they_are():
    latents = laplace(500, 4).double().requires_grad_()
    before = latents.detach().clone()
    fit = fit_kmeans(latents, 8)
    assert torch.equal(latents.detach(), before)
    assert fit.centroids.dtype == torch.float32


def test_about_as_good_as_scikit_learn():
    from sklearn.cluster import KMeans

    latents = laplace(20_000, 4)
    reference = KMeans(256, n_init=1, random_state=0).fit(latents.numpy()).inertia_ / len(latents)
    assert fit_kmeans(latents, 256).distortion < 1.02 * reference


@pytest.mark.parametrize("sample", ["normal", "laplace"])
def test_seeds_are_as_good_as_those_of_k_means_plus_plus(sample):
    """Means over four seeds, after two iterations; within 2%. Even draws, not spread, are more than 5% worse."""
    from sklearn.cluster import kmeans_plusplus

    rng = np.random.default_rng(0)
    latents = torch.from_numpy(getattr(rng, sample)(size=(8000, 4))).float()
    lloyd = kmeans._Lloyd(latents, latents.device)
    distortions = {"ours": [], "theirs": []}
    for seed in range(4):
        theirs, _ = kmeans_plusplus(latents.numpy(), 256, random_state=seed, n_local_trials=1)
        for way, seeds in (("ours", kmeans._seeds(latents, 256, seed)), ("theirs", torch.from_numpy(theirs))):
            centroids, _ = lloyd.iterate(seeds, 2, 0.0, latents)
            distortions[way].append(float(nearest_point(latents, centroids)[0].square().mean()))
    assert np.mean(distortions["ours"]) == pytest.approx(np.mean(distortions["theirs"]), rel=0.02)


def test_256_latents_per_code_are_drawn_from_more():
    """On other latents the codebook is at most 3% worse than after 50 more iterations over all, 1500 per code."""
    rng = np.random.default_rng(0)
    latents, others = (torch.from_numpy(rng.normal(size=(64 * 1500, 3))).float() for _ in range(2))
    assert len(kmeans.gathered(latents, 64, 256, 0, across_ranks=False)) == 64 * 256
    drawn = fit_kmeans(latents, 64).centroids
    whole, _ = kmeans._Lloyd(latents, latents.device).iterate(drawn, 50, 1e-4, latents)
    few, many = (float(nearest_point(others, centroids)[0].square().mean()) for centroids in (drawn, whole))
    assert few < 1.03 * many


def test_a_pass_waits_for_its_device_once(monkeypatch):
    """However many parts it has (fetching a list from the CPU is no operation); the parts change no sum."""
    latents, centroids = laplace(2000, 4), laplace(8, 4, seed=1)
    lloyd = kmeans._Lloyd(latents, latents.device)
    monkeypatch.setattr(lloyd, "_codes", lambda chunk, points, _: torch.cdist(chunk, points).argmin(dim=1))
    whole = lloyd._assign(latents, centroids, exact=False)
    monkeypatch.setattr(kmeans, "_CHUNK_LATENTS", 300)
    assert waits(lambda: lloyd._assign(latents, centroids, exact=False)) == []
    parts = lloyd._assign(latents, centroids, exact=False)
    assert torch.equal(parts.means, whole.means)
    assert parts.distortion == pytest.approx(whole.distortion, rel=1e-12)


def test_latents_in_main_memory_travel_from_pinned_memory(monkeypatch):
    latents, pinned = laplace(10, 2), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda chunk: pinned.append(chunk) or chunk)
    assert kmeans._moved(latents, torch.device("meta")).device.type == "meta"
    assert pinned[0] is latents
    assert kmeans._moved(latents, latents.device) is latents
    assert len(pinned) == 1


def test_the_device_may_be_named():
    latents = laplace(300, 2)
    assert torch.equal(fit_kmeans(latents, 8, device="cpu").centroids, fit_kmeans(latents, 8).centroids)


def test_latents_may_be_an_array(tmp_path):
    latents = laplace(200, 3)
    centroids = fit_kmeans(latents, 8).centroids
    for name, given in arrays_like(latents, tmp_path).items():
        assert torch.equal(fit_kmeans(given, 8).centroids, centroids), name
    with pytest.raises(TypeError, match="latents must be real numbers"):
        fit_kmeans(latents > 0, 2)


@pytest.mark.parametrize(
    ("latents", "size", "message"),
    [
        (laplace(10, 4), 11, "codebook_size=11 is larger than the number of latents, 10"),
        (laplace(10, 4).repeat(5, 1), 11, "codebook_size=11 is larger than the number of distinct latents, 10 of 50"),
        (laplace(50, 4).index_fill(0, torch.tensor([3, 4]), torch.nan), 8, "2 of 50 latents are NaN or infinite, or"),
        (laplace(50, 4).index_fill(0, torch.tensor([3, 4]), 1e19), 8, "2 of 50 latents are NaN or infinite, or too"),
        (torch.zeros(5, 10, 4), 2, r"latents must be \[N, d\], d at least 1, got shape \(5, 10, 4\)"),
        (torch.zeros(5, 0), 2, r"latents must be \[N, d\], d at least 1, got shape \(5, 0\)"),
        (laplace(10, 4), 0, "codebook_size must be an integer of at least 1, got 0"),
    ],
    ids=["many codes", "few distinct", "NaN", "large", "no matrix", "no dimensions", "no codes"],
)
def test_what_cannot_be_clustered_raises(latents, size, message):
    with pytest.raises(ValueError, match=message):
        fit_kmeans(latents, size)


def test_too_few_distinct_latents_are_counted():
    with pytest.raises(kmeans.TooFewDistinctError) as caught:
        fit_kmeans(laplace(10, 4).repeat(5, 1), 11)
    assert caught.value.distinct == 10
    again = pickle.loads(pickle.dumps(caught.value))  # as it travels between ranks
    assert (again.distinct, str(again)) == (10, str(caught.value))


def test_seeds_are_spread_by_squared_distance():
    """One latent in a hundred lies far away, and those hold nearly all of the distortion: most seeds go there."""
    latents = laplace(10_000, 2)
    latents[:100] += 10_000 * torch.from_numpy(np.random.default_rng(1).normal(size=(100, 2))).float()
    seeds = kmeans._seeds(latents, 80, seed=0)
    assert len(seeds.unique(dim=0)) == 80
    assert (seeds.abs().max(dim=1).values > 100).sum() >= 35


def test_many_codes_are_found_by_tree(monkeypatch):
    """The search by tree that serves many codes finds what faiss finds."""
    latents = laplace(4000, 3)
    expected = fit_kmeans(latents, 128, max_iterations=5)
    monkeypatch.setattr(kmeans, "_TREE_CODES", 100)
    found = fit_kmeans(latents, 128, max_iterations=5)
    assert found.distortion == pytest.approx(expected.distortion, rel=0.02)
    assert len(found.centroids.unique(dim=0)) == 128


def test_outliers_leave_the_sums_of_the_others_exact():
    """Latents near 1 and one at a million: means of clusters keep the digits of float32."""
    latents = torch.cat([1 + laplace(500, 2) / 100, torch.full((1, 2), 1e6)])
    fit = fit_kmeans(latents, 2, max_iterations=20, tolerance=0)
    near = fit.centroids[fit.centroids[:, 0] < 10]
    torch.testing.assert_close(near[0].double(), latents[:-1].double().mean(dim=0), rtol=1e-7, atol=0)
