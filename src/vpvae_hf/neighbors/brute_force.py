"""The reference that other searches are held to: every distance, by direct differences in float32.

Shapes: S points, N queries, d dimensions.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .base import NeighborIndex

# Entries of one block of the [queries x points] distance matrix: 64 MiB in float32.
_BLOCK_ENTRIES = 1 << 24
_POINT_BLOCK = 1 << 16


def direct_distances(queries: Tensor, points: Tensor) -> Tensor:
    """[N, S] Euclidean distances; the matrix-multiply form of cdist loses half the digits of small ones."""
    return torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist")


def query_blocks(queries: Tensor, width: int) -> Iterator[Tensor]:
    """Parts of the queries, whose distance matrix to `width` points stays within the limit of memory."""
    return iter(queries.split(max(1, _BLOCK_ENTRIES // width)))


class TorchIndex(NeighborIndex):
    """Every distance, block by block: exact, on any device, and the slowest."""

    def _distances(self, queries: Tensor, ranks: tuple[int, ...]) -> Tensor:
        blocks = self.points.to(queries.device).split(_POINT_BLOCK)
        columns = torch.tensor(ranks, device=queries.device) - 1
        rows = [self._rows(part, blocks, max(ranks)) for part in query_blocks(queries, len(blocks[0]))]
        return torch.cat(rows)[:, columns]

    @staticmethod
    def _rows(queries: Tensor, blocks: Sequence[Tensor], count: int) -> Tensor:
        nearest = queries.new_empty(len(queries), 0)
        for block in blocks:
            candidates = torch.cat([nearest, direct_distances(queries, block)], dim=1)
            nearest = candidates.topk(min(count, candidates.shape[1]), largest=False).values
        return nearest
