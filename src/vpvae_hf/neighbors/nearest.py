"""The single nearest point, exactly: the nearest code of a latent, in a fitted or a randomly drawn codebook."""

import torch
from pykdtree.kdtree import KDTree
from torch import Tensor

from vpvae_hf.tensors import as_real

from .brute_force import direct_distances, query_blocks
from .cuda import nearest_point_fused, runs_kernels


class NearestPoint:
    """`nearest_point` for fixed points [K, d] on a CPU: it copies them and builds the tree once."""

    def __init__(self, points: Tensor):
        self.points = points.detach().to("cpu", torch.float32, copy=True).contiguous()
        # Computes in float32 like the points, which takes half the time of a tree that computes in float64.
        self._tree = KDTree(self.points.numpy(), leafsize=16)

    def __call__(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """As `nearest_point`, for queries [N, d] on the CPU."""
        queries = queries.detach().float().contiguous()
        if not len(queries):
            return queries.new_empty(0), queries.new_empty(0, dtype=torch.long)
        squares, indices = self._tree.query(queries.numpy(), k=1, sqr_dists=True)
        squares, indices = torch.from_numpy(squares), torch.from_numpy(indices.astype("int64"))
        lost = indices >= len(self.points)  # so the tree marks that it found none
        if lost.any():
            raise ValueError(
                f"{int(lost.sum())} of {len(queries)} queries lie more than 1.8e19 from every point, and the square of "
                "such a distance overflows float32; the model that made them has diverged"
            )
        return squares.sqrt_(), indices

    def __reduce__(self):
        # A tree cannot be pickled, but a model that holds one must be.
        return NearestPoint, (self.points,)


def nearest_point(queries: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Find each query's nearest point by direct differences, never in a lower precision than float32.

    The answer for a query does not depend on the other queries, so a latent has the same code in every batch. On a CPU
    a k-d tree finds it, on CUDA a fused kernel (without triton: blocks of the distance matrix, 256 MiB each).

    Args:
        queries, points: [N, d] and [K, d], finite.

    Returns:
        Euclidean distances [N] float32 and indices [N] int64, on the queries' device.

    Raises:
        ValueError: no points, or points of another dimension than the queries. On a CPU, where the check costs
            nothing, also a query so far from all points that the square of its distance overflows.
    """
    queries, points = as_real(queries, "queries"), as_real(points, "points")
    if points.ndim != 2 or not len(points) or queries.ndim != 2 or queries.shape[1] != points.shape[1]:
        raise ValueError(
            f"points must be [K, d] with K >= 1 and queries [N, d], got shapes {tuple(points.shape)} "
            f"and {tuple(queries.shape)}"
        )
    if queries.device.type == "cpu":
        return NearestPoint(points)(queries)
    queries, points = queries.detach().float(), points.detach().float()
    found = nearest_point_fused(queries, points) if runs_kernels(queries.device) else None
    if found is not None:
        return found
    points = points.to(queries.device)
    nearest = [direct_distances(part, points).min(dim=1) for part in query_blocks(queries, len(points))]
    return torch.cat([n.values for n in nearest]), torch.cat([n.indices for n in nearest])


def nearest_in_graph(queries: Tensor, points: Tensor) -> Tensor:
    """The indices [N] int64 of `nearest_point` by operations that torch can export; holds all N * K distances.

    Nothing is checked. Among equally near points it gives the lowest index, where a k-d tree may give another.
    """
    queries, points = queries.detach().float(), points.detach().float()
    squares = torch.zeros((), device=queries.device)
    for query, point in zip(queries.unbind(dim=1), points.unbind(dim=1), strict=True):
        squares = squares + (query[:, None] - point).square()
    return squares.argmin(dim=1)
