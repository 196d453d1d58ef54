"""Choice of the search that finds the distance to the m-th nearest of a set of points."""

from typing import Literal

from torch import Tensor

from vpvae_hf.tensors import as_real

from .base import NeighborIndex
from .brute_force import TorchIndex
from .cpu import FaissIndex, KDTreeIndex
from .cuda import TritonIndex, runs_kernels

BACKENDS: dict[str, type[NeighborIndex]] = {
    "torch": TorchIndex,
    "kdtree": KDTreeIndex,
    "triton": TritonIndex,
    "faiss": FaissIndex,
}

# Above this a k-d tree visits nearly all of its leaves.
_MOST_TREE_DIMENSIONS = 10


def build_index(
    points: Tensor, backend: Literal["auto", "torch", "kdtree", "triton", "faiss"] = "auto"
) -> NeighborIndex:
    """Index a set of points for `NeighborIndex.distances`.

    Args:
        points: [S, d], finite.
        backend: "torch" (exact, any device), "kdtree" (exact, CPU), "triton" (exact, CUDA), "faiss" (approximate, CPU:
            see `FaissIndex` for its error), or "auto", the fastest exact one: triton on CUDA if it is installed (which
            leaves more than 8 dimensions to torch), kdtree on a CPU in up to 10 dimensions, otherwise torch.

    Raises:
        ValueError: unknown backend, one that cannot run here, or points that are not a non-empty finite matrix.
    """
    points = as_real(points, "points")
    if backend == "auto" and points.device.type == "cpu":
        backend = "kdtree" if points.ndim == 2 and points.shape[1] <= _MOST_TREE_DIMENSIONS else "torch"
    elif backend == "auto":
        backend = "triton" if runs_kernels(points.device) else "torch"
    if backend not in BACKENDS:
        raise ValueError(f"unknown search backend {backend!r}; valid: auto, {', '.join(BACKENDS)}")
    return BACKENDS[backend](points)
