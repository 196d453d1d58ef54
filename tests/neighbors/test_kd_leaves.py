import numpy as np
import pytest
import torch
from point_sets import normal

from vpvae_hf.neighbors.cuda import kd_leaves

SIZES = [(1, 1), (1, 128), (5, 1), (5, 2), (64, 16), (65, 16), (1000, 128), (1025, 128), (4097, 7)]


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}-points-{size[1]}-a-leaf")
def sizes(request):
    return request.param


def by_leaf(leaves):
    """[L, n, d]"""
    return leaves.points.T.reshape(leaves.leaf_count, leaves.leaf_size, -1)


def in_order(points):
    return points[np.lexsort(points.T.numpy())]


def assert_each_point_has_one_place(leaves, points):
    is_point = leaves.points.T.isfinite().all(dim=1)
    assert torch.equal(in_order(leaves.points.T[is_point]), in_order(points))
    assert (leaves.points.T[~is_point] == torch.inf).all()


@pytest.mark.parametrize("dim", [1, 4])
def test_boxes_hold_all_points_and_fit_tightly(sizes, dim):
    size, most = sizes
    points = normal(size, dim)
    leaves = kd_leaves(points, most)
    assert_each_point_has_one_place(leaves, points)
    assert leaves.leaf_size % 16 == 0
    assert by_leaf(leaves).isfinite().all(dim=2).sum(dim=1).max() <= most
    assert leaves.leaf_count.bit_count() == 1
    assert leaves.points.shape == (dim, leaves.leaf_count * leaves.leaf_size)
    for box, lower, upper in zip(by_leaf(leaves), leaves.lower.T, leaves.upper.T, strict=True):
        held = box[box.isfinite().all(dim=1)]
        if len(held):
            assert torch.equal(lower, held.amin(dim=0))
            assert torch.equal(upper, held.amax(dim=0))


@pytest.mark.parametrize(("size", "most", "empty"), [(5, 1, 3), (9, 2, 3), (129, 128, 0)])
def test_empty_leaves_lie_infinitely_far(size, most, empty):
    leaves = kd_leaves(normal(size, 4), most)
    is_empty = by_leaf(leaves).isinf().all(dim=(1, 2))
    assert is_empty.sum() == empty
    gaps = torch.maximum(leaves.lower, -leaves.upper).clamp_min(0)  # from the origin
    assert gaps[:, is_empty].isposinf().all()
    assert gaps[:, ~is_empty].isfinite().all()


def test_boxes_do_not_overlap():
    leaves = kd_leaves(normal(1024, 2), 16)
    lower, upper = leaves.lower.T, leaves.upper.T
    apart = ((lower[:, None] > upper[None]) | (upper[:, None] < lower[None])).any(dim=2)
    assert torch.equal(apart, ~torch.eye(len(lower), dtype=torch.bool))


def test_the_widest_dimension_is_split():
    leaves = kd_leaves(normal(1024, 2) * torch.tensor([1.0, 100.0]), 128)
    lower, upper = leaves.lower[1], leaves.upper[1]
    assert (upper[:-1] < lower[1:]).all()


@pytest.mark.parametrize("others", [0, 1, 500])
def test_equal_points(others):
    points = torch.cat([normal(1, 4).expand(1000, 4), normal(others, 4, seed=1)])
    leaves = kd_leaves(points, 128)
    assert_each_point_has_one_place(leaves, points)
    assert not torch.cat([leaves.lower, leaves.upper]).isnan().any()


def test_coordinates_that_span_more_than_float32():
    points = torch.cat([normal(300, 2), torch.full((1, 2), 3e38), torch.full((1, 2), -3e38)])
    assert_each_point_has_one_place(kd_leaves(points, 16), points)
