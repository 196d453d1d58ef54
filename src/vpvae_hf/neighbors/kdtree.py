"""Exact search on a CPU by k-d trees."""

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from .base import NeighborIndex


class KDTreeIndex(NeighborIndex):
    """scipy's k-d tree on all cores: exact, the fastest on a CPU in up to about 10 dimensions."""

    def __init__(self, points: Tensor):
        super().__init__(points)
        self._tree = _tree(self.points.cpu().numpy())

    def _distances(self, queries: Tensor, ranks: tuple[int, ...]) -> Tensor:
        here = queries.cpu().numpy()
        # As in `in_tree_order`.
        order = _tree(here).indices if len(here) else slice(None)
        found = np.empty((len(here), len(ranks)), dtype=np.float32)
        found[order] = self._tree.query(here[order], k=list(ranks), workers=-1)[0]
        return torch.from_numpy(found).to(queries.device)


def in_tree_order(points: Tensor) -> Tensor:
    """A copy of points [S, d] on the CPU in which neighbours in space lie near each other, in leaves of a k-d tree.

    As queries they are answered sooner in this order, since those after each other walk through the same leaves.
    """
    return points[torch.from_numpy(_tree(points.detach().float().numpy()).indices)]


def _tree(points: np.ndarray) -> cKDTree:
    # Midpoint splits and larger leaves build three times faster than the defaults and search no slower.
    return cKDTree(points, leafsize=32, balanced_tree=False, compact_nodes=False)
