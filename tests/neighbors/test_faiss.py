"""The approximate search errs little, and to one side only."""

import numpy as np
import torch
from point_sets import brute_force, normal

from vpvae_hf.neighbors import build_index
from vpvae_hf.neighbors.cpu import FaissIndex


def test_error_at_the_default_queue_of_1024_codes():
    """Measured: 0.1% at rank 64 (and 5% at most), 0.003% at rank 8."""
    points, queries, ranks = normal(65_536, 4), normal(4096, 4, seed=1), (8, 64)
    exact = build_index(points, "kdtree").distances(queries, ranks)
    errors = build_index(points, "faiss").distances(queries, ranks) / exact - 1
    assert errors.min() > -1e-6
    assert errors.mean(dim=0).max() < 0.003
    assert errors.max() < 0.15


def test_distances_are_never_too_small():
    points, queries, ranks = 5 + normal(3000, 8), 5 + 2 * normal(500, 8, seed=1), (1, 2, 8, 64)
    found = build_index(points, "faiss").distances(queries, ranks)
    assert (found.numpy() >= (1 - 1e-4) * brute_force(queries, points, ranks)).all()


def test_lists_that_hold_too_few_points():
    """64 clusters of 16 points in 32 lists: the 8 lists looked into first hold fewer than 600 points."""
    points = (100 * normal(64, 4, seed=1)).repeat_interleave(16, dim=0) + normal(1024, 4)
    queries, ranks = points[::128], (1, 16, 600, 1024)
    index = FaissIndex(points)
    index._index.nprobe = 8
    _, ids = index._index.search((queries - index._center).numpy(), 600)
    assert (ids[:, -1] < 0).all()
    found = index.distances(queries, ranks)
    np.testing.assert_allclose(found, brute_force(queries, points, ranks), rtol=1e-4, atol=1e-4)


def test_repeated_searches_give_the_same():
    """Also after one that had to look into every list."""
    index, queries = build_index(normal(2000, 4), "faiss"), normal(50, 4, seed=1)
    first = index.distances(queries, (8, 64))
    index.distances(queries, (2000,))
    assert torch.equal(index.distances(queries, (8, 64)), first)


def test_overflowing_distances_are_infinite():
    queries = torch.cat([normal(1, 4), torch.full((1, 4), 1e20)])
    found = build_index(normal(500, 4), "faiss").distances(queries, (1, 8))
    assert found.isinf().tolist() == [[False, False], [True, True]]
