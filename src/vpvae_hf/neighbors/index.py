"""Distances to the m-th nearest of a set of points.

Shapes: S points, N queries, R ranks, d dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

# Entries of one block of the [queries x points] distance matrix: 64 MiB in float32.
_BLOCK_ENTRIES = 1 << 24


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


class TorchIndex(NeighborIndex):
    """Every distance, block by block, by direct differences in float32: the reference, on any device."""

    def _distances(self, queries: Tensor, ranks: tuple[int, ...]) -> Tensor:
        points = self.points.to(queries.device)
        columns = torch.tensor(ranks, device=queries.device) - 1
        point_block = min(len(points), 1 << 16)
        query_block = max(1, _BLOCK_ENTRIES // point_block)
        rows = [self._rows(block, points.split(point_block), max(ranks)) for block in queries.split(query_block)]
        return torch.cat(rows)[:, columns]

    @staticmethod
    def _rows(queries: Tensor, blocks: Sequence[Tensor], count: int) -> Tensor:
        nearest = queries.new_empty(len(queries), 0)
        for block in blocks:
            # The matrix-multiply form of cdist loses half the digits of small distances.
            distances = torch.cdist(queries, block, compute_mode="donot_use_mm_for_euclid_dist")
            candidates = torch.cat([nearest, distances], dim=1)
            nearest = candidates.topk(min(count, candidates.shape[1]), largest=False).values
        return nearest


class KDTreeIndex(NeighborIndex):
    """scipy's k-d tree on all cores: exact, the fastest on a CPU in up to about 8 dimensions."""

    def __init__(self, points: Tensor):
        super().__init__(points)
        # Midpoint splits and larger leaves build three times faster than the defaults and search no slower.
        self._tree = cKDTree(self.points.cpu().numpy(), leafsize=32, balanced_tree=False, compact_nodes=False)

    def _distances(self, queries: Tensor, ranks: tuple[int, ...]) -> Tensor:
        found, _ = self._tree.query(queries.cpu().numpy(), k=list(ranks), workers=-1)
        return torch.from_numpy(found.astype(np.float32)).to(queries.device)


BACKENDS: dict[str, type[NeighborIndex]] = {"torch": TorchIndex, "kdtree": KDTreeIndex}


def build_index(points: Tensor, backend: Literal["auto", "torch", "kdtree"] = "auto") -> NeighborIndex:
    """Index a set of points for `NeighborIndex.distances`.

    Args:
        points: [S, d], finite.
        backend: "kdtree" (exact, CPU), "torch" (exact, any device), or "auto": kdtree on a CPU, torch elsewhere.

    Raises:
        ValueError: unknown backend, or points that are not a non-empty finite matrix.
    """
    if backend == "auto":
        backend = "kdtree" if points.device.type == "cpu" else "torch"
    if backend not in BACKENDS:
        raise ValueError(f"unknown search backend {backend!r}; valid: auto, {', '.join(BACKENDS)}")
    return BACKENDS[backend](points)
