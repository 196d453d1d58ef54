"""The interface of all search indexes.

Shapes: S points, N queries, R ranks, d dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from vpvae_hf.tensors import as_real


class NeighborIndex(ABC):
    """A fixed set of points that finds how far a query's m-th nearest point is.

    Args:
        points: [S, d], finite. The index copies what it keeps.

    Attributes:
        size, dim: S and d.
        device: where the points lie.

    Raises:
        ValueError: points or queries that are not a finite matrix, no points, or a rank outside 1..S.
    """

    def __init__(self, points: Tensor):
        if points.ndim != 2 or points.shape[0] == 0:
            raise ValueError(f"points must be [S, d] with S >= 1, got shape {tuple(points.shape)}")
        if not torch.isfinite(points).all():
            raise ValueError("points contain NaN or infinite values; remove them before building an index")
        self.size, self.dim = points.shape
        self.device = points.device

    def distances(self, queries: Tensor, ranks: Sequence[int]) -> Tensor:
        """Euclidean distances [N, R] float32 from queries [N, d] to their ranks[r]-th nearest points, 1 the nearest."""
        queries = as_real(queries, "queries")
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries must be [N, {self.dim}] like the points, got shape {tuple(queries.shape)}")
        if not ranks or min(ranks) < 1 or max(ranks) > self.size:
            raise ValueError(f"ranks must lie in 1..{self.size} (the number of points), got {tuple(ranks)}")
        if not torch.isfinite(queries).all():
            raise ValueError("queries contain NaN or infinite values, which have no nearest neighbour")
        return self.distances_unchecked(queries.detach().float(), tuple(ranks))

    @abstractmethod
    def distances_unchecked(self, queries: Tensor, ranks: tuple[int, ...]) -> Tensor:
        """As `distances`, for detached float32 queries and valid ranks; it checks no values.

        So a search on a GPU waits for no check. A query that is not finite gets distances without meaning.
        """
