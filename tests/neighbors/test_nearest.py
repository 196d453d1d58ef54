import numpy as np
import pytest
import torch
from point_sets import KERNEL_DEVICE, all_distances, needs_triton, normal

from vpvae_hf.neighbors import cuda, nearest_point
from vpvae_hf.neighbors.cuda import nearest_point_fused


def assert_nearest(queries, points, tolerance=1e-6, underflow=0.0):
    """The distance is the least, and the point found lies at that distance."""
    distances, indices = nearest_point(queries, points)
    expected = all_distances(queries, points)
    np.testing.assert_allclose(distances, expected.min(axis=1), rtol=tolerance, atol=underflow)
    chosen = expected[np.arange(len(queries)), indices]
    np.testing.assert_allclose(chosen, expected.min(axis=1), rtol=tolerance, atol=underflow)


def assert_first_of_equals(found, queries, points):
    distances, indices = found
    expected = all_distances(queries, points)
    assert distances.dtype == torch.float32
    assert indices.dtype == torch.int64
    np.testing.assert_array_equal(indices, expected.argmin(axis=1))
    np.testing.assert_allclose(distances, expected.min(axis=1), rtol=1e-6)


@pytest.mark.parametrize("dim", [1, 4, 5, 16])
def test_equals_brute_force(dim):
    points, queries = normal(500, dim), 2 * normal(300, dim, seed=1)
    assert_first_of_equals(nearest_point(queries, points), queries, points)


def fused(queries, points):
    return tuple(part.cpu() for part in nearest_point_fused(queries.to(KERNEL_DEVICE), points.to(KERNEL_DEVICE)))


@needs_triton
@pytest.mark.parametrize("dim", [1, 4, 5, 16])
@pytest.mark.parametrize(("queries", "points"), [(1, 1), (5, 3), (16, 64), (17, 65), (40, 300), (16, 128)])
def test_kernel_equals_brute_force(dim, queries, points):
    """Numbers of queries and points with and without a rest after the kernel's tiles of 16 and 64."""
    queries, points = 2 * normal(queries, dim, seed=1), normal(points, dim)
    assert_first_of_equals(fused(queries, points), queries, points)


@needs_triton
@pytest.mark.parametrize("copies", [2, 20])
def test_kernel_finds_the_first_of_equals(copies):
    """Both in one tile and in several; integer coordinates tie exactly."""
    points = (2 * normal(70, 2)).round().repeat(copies, 1)
    queries = (2 * normal(40, 2, seed=1)).round()
    assert_first_of_equals(fused(queries, points), queries, points)


@needs_triton
@pytest.mark.parametrize("points", [400, 1000, 1025])
def test_kernel_searches_parts_of_the_points_for_few_queries(points, monkeypatch):
    """As on a GPU of ten processors; nearest points lie in all parts, and some twice."""
    monkeypatch.setattr(cuda, "_processors", lambda _: 10)
    monkeypatch.setattr(cuda, "_LEAST_PART", 128)
    points = (4 * normal(points, 2)).round()
    queries = torch.cat([points[::50], points[-1:]])
    assert_first_of_equals(fused(queries, points), queries, points)


@needs_triton
def test_kernel_without_queries():
    distances, indices = fused(torch.empty(0, 4), normal(10, 4))
    assert distances.shape == indices.shape == (0,)
    assert indices.dtype == torch.int64


@needs_triton
def test_kernel_takes_transposed_tensors():
    points, queries = normal(4, 100).T, normal(4, 20, seed=1).T
    assert torch.equal(fused(queries, points)[1], nearest_point(queries, points)[1])


@needs_triton
def test_kernel_computes_in_float32_whatever_the_default():
    points, queries = normal(100, 4), normal(20, 4, seed=1)
    expected = fused(queries, points)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = fused(queries, points)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found[0].dtype == torch.float32
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("dim", [1, 4])
@pytest.mark.parametrize("others", [0, 5])
def test_200_000_identical_points(dim, others):
    point = normal(1, dim)
    points = torch.cat([point.expand(200_000, dim), normal(others, dim, seed=2)])
    assert_nearest(torch.cat([normal(20, dim, seed=1), point]), points)


def test_heavy_duplicates():
    assert_nearest(normal(20, 4, seed=1), normal(7, 4).repeat(20_000, 1))
    assert_nearest(3 * normal(100, 4, seed=1), (2 * normal(20_000, 4)).round())


@pytest.mark.parametrize("dim", [1, 5])
@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1.0, 1e10, 1e15])
def test_scales_from_tiny_to_huge(dim, scale):
    """Distances below 1e-19, whose squares float32 can't hold to full precision, may be off by that much."""
    scales = 10 ** torch.linspace(-20, 15, 20_000).unsqueeze(1)
    assert_nearest(scale * normal(100, dim, seed=1), scales * normal(20_000, dim), underflow=1e-19)


def test_dimensions_of_different_scale():
    scales = 10 ** torch.linspace(-20, 15, 5)
    assert_nearest(scales * normal(100, 5, seed=1), scales * normal(5000, 5))
    assert_nearest(1e-15 * scales * normal(100, 5, seed=1), scales * normal(5000, 5))


@pytest.mark.parametrize("value", [1e20, 3e38, float("nan"), float("inf")])
def test_queries_whose_distance_overflows_raise(value):
    queries = normal(10, 4)
    queries[3, 1] = queries[7, 0] = value
    with pytest.raises(ValueError, match=r"2 of 10 queries lie more than 1\.8e19 from every point.* has diverged"):
        nearest_point(queries, normal(100, 4))


def test_answer_does_not_depend_on_the_rest_of_the_batch():
    """Also where points tie: half of these lie twice in the codebook."""
    points, queries = normal(200, 4), normal(64, 4, seed=1)
    points = torch.cat([points, points[:100]])
    together = nearest_point(queries, points)
    reversed_batch = nearest_point(queries.flip(0), points)
    alone = [nearest_point(query.unsqueeze(0), points) for query in queries]
    for part in (0, 1):
        assert torch.equal(together[part], reversed_batch[part].flip(0))
        assert torch.equal(together[part], torch.cat([answer[part] for answer in alone]))


@pytest.mark.parametrize(("points", "queries"), [((0, 3), (4, 3)), ((5, 2), (4, 3)), ((5,), (4,)), ((5, 3), (3,))])
def test_shapes_that_do_not_match_raise(points, queries):
    with pytest.raises(ValueError, match=r"points must be \[K, d\] with K >= 1 and queries \[N, d\], got shapes"):
        nearest_point(torch.zeros(queries), torch.zeros(points))


def test_small_distances_far_from_the_origin_keep_their_digits():
    points = 1000 + torch.arange(256).float().unsqueeze(1) * 2**-10
    distances, indices = nearest_point(points + 2**-13, points)
    assert torch.equal(indices, torch.arange(256))
    assert (distances == 2**-13).all()


def test_half_precision_is_searched_in_float32():
    """Points closer to each other than bfloat16 can tell apart."""
    points = 1 + torch.arange(64).float().unsqueeze(1) * 2**-12
    _, indices = nearest_point(torch.ones(1, 1, dtype=torch.bfloat16), points)
    assert indices.tolist() == [0]
    _, indices = nearest_point(points, points)
    assert torch.equal(indices, torch.arange(64))


def test_queries_that_need_gradients_and_no_queries():
    points = normal(10, 4)
    distances, _ = nearest_point(normal(5, 4, seed=1).requires_grad_(), points)
    assert not distances.requires_grad
    distances, indices = nearest_point(torch.empty(0, 4), points)
    assert distances.shape == indices.shape == (0,)
