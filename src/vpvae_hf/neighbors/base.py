"""What every search index can do.

Shapes: S points, N queries, R ranks, d dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class NeighborIndex(ABC):
    """A fixed set of points that answers how far a query's m-th nearest point is.

    Args:
        points: [S, d], finite. Kept by reference where the backend allows.

    Raises:
        ValueError: points are not a non-empty finite matrix.
    """

    def __init__(self, points: Tensor):
        if points.ndim != 2 or points.shape[0] == 0:
            raise ValueError(f"points must be [S, d] with S >= 1, got shape {tuple(points.shape)}")
        if not torch.isfinite(points).all():
            raise ValueError("points contain NaN or infinite values; remove them before building an index")
        self.points = points.detach().float()

    def distances(self, queries: Tensor, ranks: Sequence[int]) -> Tensor:
        """Euclidean distance from each query to its nearest points of the given ranks.

        Args:
            queries: [N, d], finite.
            ranks: R ranks, 1 the nearest; any order.

        Returns:
            [N, R] float32 on the queries' device; column r is the distance to the ranks[r]-th nearest point.

        Raises:
            ValueError: a rank outside 1..S, another dimension than the points', or non-finite queries.
        """
        size, dim = self.points.shape
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise ValueError(f"queries must be [N, {dim}] like the points, got shape {tuple(queries.shape)}")
        if not ranks or min(ranks) < 1 or max(ranks) > size:
            raise ValueError(f"ranks must lie in 1..{size} (the number of points), got {tuple(ranks)}")
        if not torch.isfinite(queries).all():
            raise ValueError("queries contain NaN or infinite values, which have no nearest neighbour")
        return self._distances(queries.detach().float(), tuple(ranks))

    @abstractmethod
    def _distances(self, queries: Tensor, ranks: tuple[int, ...]) -> Tensor: ...
