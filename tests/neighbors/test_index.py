import numpy as np
import pytest
import torch

from vpvae_hf.neighbors import BACKENDS, build_index
from vpvae_hf.neighbors.index import KDTreeIndex

RANKS = (1, 8, 64)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def brute_force(queries: torch.Tensor, points: torch.Tensor, ranks: tuple[int, ...]) -> np.ndarray:
    squares = np.zeros((len(queries), len(points)))
    for query, point in zip(queries.double().T.numpy(), points.double().T.numpy(), strict=True):
        squares += (query[:, None] - point[None, :]) ** 2
    columns = np.array(ranks) - 1
    return np.sqrt(np.partition(squares, columns, axis=1)[:, columns])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [1, 4, 8])
def test_distances_equal_brute_force(backend, dim):
    points, queries = normal(1000, dim), 2 * normal(200, dim, seed=1)
    found = build_index(points, backend).distances(queries, RANKS)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, brute_force(queries, points, RANKS), rtol=1e-6)


def test_several_blocks_equal_brute_force(backend):
    """More points than one block of the torch backend holds, and more queries than go with such a block."""
    points, queries = normal(70_000, 3), normal(300, 3, seed=1)
    points = points[points[:, 0].argsort()]  # the nearest of some queries lie in the last block alone
    found = build_index(points, backend).distances(queries, RANKS)
    np.testing.assert_allclose(found, brute_force(queries, points, RANKS), rtol=1e-6)


@pytest.mark.parametrize("ranks", [(64, 8, 1), (8, 1, 64), (5,), (3, 3), (100, 1)])
def test_columns_follow_the_order_of_the_ranks(backend, ranks):
    points, queries = normal(100, 4), normal(20, 4, seed=1)
    found = build_index(points, backend).distances(queries, ranks)
    np.testing.assert_allclose(found, brute_force(queries, points, ranks), rtol=1e-6)


def test_duplicate_points_lie_at_distance_zero(backend):
    points = normal(40, 4).repeat_interleave(10, dim=0)
    found = build_index(points, backend).distances(points, (1, 10, 11))
    assert (found[:, :2] == 0).all()
    assert (found[:, 2] > 0).all()


def test_small_distances_far_from_the_origin_keep_their_digits(backend):
    """Steps of 2^-10 at 1000 are exact in float32; a product of the coordinates is not."""
    points = 1000 + torch.arange(256).float().unsqueeze(1).expand(-1, 4) * 2**-10
    ranks = (1, 2, 4)
    expected = brute_force(points, points, ranks)
    found = build_index(points, backend).distances(points, ranks)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    products = torch.cdist(points, points, compute_mode="use_mm_for_euclid_dist").sort(dim=1).values
    assert not np.allclose(products[:, [0, 1, 3]], expected, rtol=0.5)


def test_no_queries(backend):
    assert build_index(normal(100, 4), backend).distances(torch.empty(0, 4), RANKS).shape == (0, 3)


def test_points_that_need_gradients_or_are_half_precision(backend):
    points, queries = normal(100, 4).bfloat16(), normal(20, 4, seed=1).requires_grad_()
    found = build_index(points.requires_grad_(), backend).distances(queries, (1, 8))
    assert found.dtype == torch.float32
    assert not found.requires_grad
    np.testing.assert_allclose(found, brute_force(queries.detach(), points.detach(), (1, 8)), rtol=1e-6)


def test_auto_is_the_tree_on_a_cpu():
    points, queries = normal(100, 4), normal(20, 4, seed=1)
    index = build_index(points)
    assert isinstance(index, KDTreeIndex)
    assert torch.equal(index.distances(queries, (1, 8)), build_index(points, "kdtree").distances(queries, (1, 8)))


@pytest.mark.parametrize("ranks", [(0,), (1, 101), (-1, 1), ()])
def test_rank_outside_the_points_raises(backend, ranks):
    index = build_index(normal(100, 4), backend)
    with pytest.raises(ValueError, match=r"ranks must lie in 1\.\.100 \(the number of points\), got \("):
        index.distances(normal(5, 4), ranks)


@pytest.mark.parametrize("shape", [(5, 3), (4,), (5, 4, 1)])
def test_queries_of_another_shape_raise(backend, shape):
    index = build_index(normal(100, 4), backend)
    with pytest.raises(ValueError, match=r"queries must be \[N, 4\] like the points, got shape"):
        index.distances(normal(*shape), (1,))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_raise(backend, value):
    bad = normal(100, 4)
    bad[7, 2] = value
    with pytest.raises(ValueError, match="points contain NaN or infinite values"):
        build_index(bad, backend)
    with pytest.raises(ValueError, match="queries contain NaN or infinite values"):
        build_index(normal(100, 4), backend).distances(bad, (1,))


@pytest.mark.parametrize("shape", [(0, 4), (100,), (10, 5, 2)])
def test_points_that_are_no_matrix_raise(backend, shape):
    with pytest.raises(ValueError, match=r"points must be \[S, d\] with S >= 1, got shape"):
        build_index(normal(*shape), backend)


def test_unknown_backend_raises():
    with pytest.raises(ValueError, match="unknown search backend 'ball'; valid: auto, torch, kdtree"):
        build_index(normal(10, 4), "ball")
