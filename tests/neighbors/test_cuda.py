"""The search on a GPU gives what the search on the CPU gives."""

import pytest
import torch
from point_sets import needs_triton, normal

from vpvae_hf.neighbors import build_index, nearest_point
from vpvae_hf.neighbors.cuda import TritonIndex

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="compares the GPU with the CPU, and there is no GPU"),
]

CODES = 1024


def queue(dim):
    """The default queue of latents for 1024 codes, and some queries."""
    return normal(CODES * 16 * dim, dim), normal(300, dim, seed=1)


def assert_distances(backend, points, queries, ranks):
    here = build_index(points, "kdtree").distances(queries, ranks)
    there = build_index(points.cuda(), backend).distances(queries.cuda(), ranks)
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), here, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("dim", [4, 5, 16])
def test_distances(backend, dim):
    assert_distances(backend, *queue(dim), (16 * dim, 8, 1))


@needs_triton
def test_great_ranks_and_more_queries_than_one_launch_takes():
    for rank in (512, 1024, 1025):
        assert_distances("triton", *queue(5), (rank,))
    assert_distances("triton", queue(4)[0], normal(70_000, 4, seed=1), (8, 64))


@needs_triton
def test_auto_runs_the_kernels():
    assert type(build_index(normal(100, 4).cuda())) is TritonIndex


@pytest.mark.parametrize(("codes", "dim"), [(CODES, 4), (16_384, 5), (CODES, 16), (1000, 1)])
def test_nearest_codes(codes, dim):
    points, queries = normal(codes, dim), normal(50_000, dim, seed=1)
    distances, indices = nearest_point(queries, points)
    found_distances, found_indices = nearest_point(queries.cuda(), points.cuda())
    assert torch.equal(found_indices.cpu(), indices)
    torch.testing.assert_close(found_distances.cpu(), distances, rtol=1e-6, atol=0)


def test_autocast_changes_nothing():
    points, queries = queue(5)
    points, queries, codes = points.cuda(), queries.cuda(), points[:CODES].cuda()
    distances, nearest = build_index(points).distances(queries, (8, 80)), nearest_point(queries, codes)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(build_index(points).distances(queries, (8, 80)), distances)
        for found, expected in zip(nearest_point(queries, codes), nearest, strict=True):
            assert torch.equal(found, expected)
