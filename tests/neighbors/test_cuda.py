"""The search on a GPU gives what the search on the CPU gives."""

import pytest
import torch

from vpvae_hf.neighbors import build_index, nearest_point

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="compares the GPU with the CPU, and there is no GPU"),
]


def test_distances():
    generator = torch.Generator().manual_seed(0)
    points, queries = torch.randn(70_000, 4, generator=generator), torch.randn(500, 4, generator=generator)
    here = build_index(points).distances(queries, (8, 64))
    there = build_index(points.cuda()).distances(queries.cuda(), (8, 64))
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-6)


def test_nearest_codes():
    generator = torch.Generator().manual_seed(0)
    points, queries = torch.randn(1024, 4, generator=generator), torch.randn(50_000, 4, generator=generator)
    assert torch.equal(nearest_point(queries.cuda(), points.cuda())[1].cpu(), nearest_point(queries, points)[1])
