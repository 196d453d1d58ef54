"""Search on a CPU: exactly by a k-d tree, or approximately by faiss' inverted lists."""

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from .base import NeighborIndex

_TRAINING_POINTS_PER_LIST = 64


class KDTreeIndex(NeighborIndex):
    """scipy's k-d tree on all cores: exact, the fastest on a CPU in up to about 10 dimensions."""

    def __init__(self, points: Tensor):
        super().__init__(points)
        self._tree = _tree(points.detach().float().cpu().numpy())

    def distances_unchecked(self, queries: Tensor, ranks: tuple[int, ...]) -> Tensor:
        here = queries.cpu().nan_to_num().numpy()  # scipy refuses what is not finite
        # Sorted as by `in_tree_order`.
        order = _tree(here).indices if len(here) else slice(None)
        found = np.empty((len(here), len(ranks)), dtype=np.float32)
        found[order] = self._tree.query(here[order], k=list(ranks), workers=-1)[0]
        return torch.from_numpy(found).to(queries.device)


class FaissIndex(NeighborIndex):
    """An inverted file (IVF) on the CPU: approximate. It can miss neighbours, so distances are never too small.

    It cuts the points into sqrt(S) cells and looks into the max(8, 4 (d - 2)) of them nearest to the query. Mean error
    of D_M with normal points and the default queue at K=1024: 0.1% in 4 dimensions (7% at most), 0.9% in 16 (4% at
    most). Below 10 dimensions the k-d tree is about as fast, and exact.
    """

    def __init__(self, points: Tensor):
        super().__init__(points)
        import faiss  # takes a second to load, and only this backend needs it

        here = points.detach().float().cpu()
        # faiss compares |x|^2 - 2xy + |y|^2, which loses digits far from the origin.
        self._center = here.double().mean(dim=0).float()
        vectors = (here - self._center).contiguous().numpy()
        self._lists = max(1, int(len(vectors) ** 0.5))
        self._index = faiss.IndexIVFFlat(faiss.IndexFlatL2(self.dim), self.dim, self._lists)
        self._index.cp.niter = 5
        self._index.cp.min_points_per_centroid = 1
        self._index.cp.max_points_per_centroid = _TRAINING_POINTS_PER_LIST
        self._index.train(vectors)
        self._index.add(vectors)

    def distances_unchecked(self, queries: Tensor, ranks: tuple[int, ...]) -> Tensor:
        vectors = (queries.cpu() - self._center).contiguous().numpy()
        columns = np.array(ranks) - 1
        found = np.empty((len(vectors), len(ranks)), dtype=np.float32)
        pending = np.arange(len(vectors))
        self._index.nprobe = min(self._lists, max(8, 4 * (vectors.shape[1] - 2)))
        while len(pending):
            squares, ids = self._index.search(vectors[pending], max(ranks))
            found[pending] = np.where(ids[:, columns] < 0, np.inf, np.sqrt(np.maximum(squares[:, columns], 0)))
            if self._index.nprobe == self._lists:
                break  # what is still missing is so far that its square overflows
            pending = pending[ids[:, -1] < 0]  # the lists looked into held fewer points
            self._index.nprobe = min(self._lists, 4 * self._index.nprobe)
        return torch.from_numpy(found).to(queries.device)


def in_tree_order(points: Tensor) -> Tensor:
    """Points [S, d] on the CPU in the order of a k-d tree's leaves, so that, as queries, they visit leaves in turn."""
    return points[torch.from_numpy(_tree(points.detach().float().numpy()).indices)]


def _tree(points: np.ndarray) -> cKDTree:
    # Midpoint splits and larger leaves build three times faster than the defaults and search no slower.
    return cKDTree(points, leafsize=32, balanced_tree=False, compact_nodes=False)
