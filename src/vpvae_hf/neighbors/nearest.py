"""The single nearest point, exactly: nearest code of a latent, nearest draw of a resampled codebook."""

import torch
from pykdtree.kdtree import KDTree
from torch import Tensor

from .brute_force import direct_distances, query_blocks
from .triton_search import nearest_point_fused, runs_kernels


def nearest_point(queries: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Find each query's nearest point by direct differences, never in a lower precision than float32.

    The answer for a query does not depend on the other queries, so a latent has the same code in every batch. On a CPU
    a k-d tree finds it, on CUDA a fused kernel (without triton: blocks of the distance matrix, 64 MiB each).

    Args:
        queries: [N, d], finite.
        points: [K, d], finite.

    Returns:
        Euclidean distances [N] float32 and indices [N] int64, on the queries' device.

    Raises:
        ValueError: on a CPU, a query so far from all points that the square of its distance overflows.
    """
    queries, points = queries.detach().float(), points.detach().float()
    if queries.device.type == "cpu":
        return _by_tree(queries, points.cpu())
    if runs_kernels(queries.device):
        return nearest_point_fused(queries, points)
    points = points.to(queries.device)
    nearest = [direct_distances(part, points).min(dim=1) for part in query_blocks(queries, len(points))]
    return torch.cat([n.values for n in nearest]), torch.cat([n.indices for n in nearest])


def _by_tree(queries: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    if not len(queries):
        return queries.new_empty(0), queries.new_empty(0, dtype=torch.long)
    # Computes in float32 like the points, which takes half the time of a tree that computes in float64.
    tree = KDTree(points.contiguous().numpy(), leafsize=16)
    squares, indices = tree.query(queries.contiguous().numpy(), k=1, sqr_dists=True)
    squares, indices = torch.from_numpy(squares), torch.from_numpy(indices.astype("int64"))
    lost = indices >= len(points)  # pykdtree gives 2^32 - 1 where it finds none, as for NaN
    if lost.any():
        raise ValueError(
            f"{int(lost.sum())} of {len(queries)} queries lie more than 1.8e19 from every point, and the square of "
            "such a distance overflows float32; the model that made them has diverged"
        )
    return squares.sqrt(), indices
