import numpy as np
import pytest
import torch

from vpvae_hf.neighbors import nearest_point


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [1, 4, 8])
def test_equals_brute_force(dim):
    points, queries = normal(500, dim), 2 * normal(300, dim, seed=1)
    distances, indices = nearest_point(queries, points)
    expected = np.linalg.norm(queries.double().numpy()[:, None] - points.double().numpy()[None], axis=2)
    assert distances.dtype == torch.float32
    assert indices.dtype == torch.int64
    np.testing.assert_array_equal(indices, expected.argmin(axis=1))
    np.testing.assert_allclose(distances, expected.min(axis=1), rtol=1e-6)


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


def test_points_find_themselves():
    points = normal(300, 4)
    distances, indices = nearest_point(points, points)
    assert torch.equal(indices, torch.arange(300))
    assert (distances == 0).all()


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
