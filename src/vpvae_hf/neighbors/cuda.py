"""Exact search on CUDA, by fused kernels. Shapes: S points, N queries, d dimensions, L leaves of n places each."""

import functools
import importlib.util
import math
import os
from typing import NamedTuple

import torch
from torch import Tensor

from .base import NeighborIndex, TorchIndex, query_blocks

# Candidates that one program holds while it searches. More would spill its registers; the default queue needs
# 512 of them at d = 4 and 1024 at d = 16.
_LEAST_CAPACITY, _MOST_CAPACITY = 512, 4096
_LEAF_SIZE = 128
_LEAVES_AT_ONCE = 64
# Larger tiles spill registers at d = 16.
_QUERY_TILE, _POINT_TILE = 16, 64
# Fused multiply-adds round differently from what the CPU computes, and a code must not depend on the device.
_OPTIONS = {"enable_fp_fusion": False}


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def runs_kernels(device: torch.device) -> bool:
    """Whether kernels can run on tensors of a device: on CUDA, and in triton's interpreter on any."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return has_triton() and (device.type == "cuda" or interpreted)


class TritonIndex(NeighborIndex):
    """Exact: points in the leaves of a k-d tree, of which each query visits only those that can hold a nearer point.

    `TorchIndex` searches ranks above 1024.

    Raises:
        ValueError: points on another device than CUDA, or triton is not installed.
    """

    def __init__(self, points: Tensor):
        super().__init__(points)
        self.points = points.detach().float()
        if not runs_kernels(self.points.device):
            missing = "triton is not installed" if not has_triton() else f"the points are on {self.points.device}"
            raise ValueError(
                f'the "triton" search needs triton and points on a CUDA device, but {missing}; '
                'use "kdtree" on a CPU, "torch" elsewhere, or "auto"'
            )
        self._leaves = kd_leaves(self.points, _LEAF_SIZE)

    def distances_unchecked(self, queries: Tensor, ranks: tuple[int, ...]) -> Tensor:
        ascending = sorted(set(ranks))
        capacity = max(_LEAST_CAPACITY, 4 << (ascending[-1] - 1).bit_length())
        if capacity > _MOST_CAPACITY:
            return TorchIndex(self.points).distances_unchecked(queries, ranks)
        columns = [ascending.index(rank) for rank in ranks]
        if not len(queries):
            return queries.new_empty(0, len(ranks))
        blocks = query_blocks(queries.to(self.points.device), capacity)
        squares = torch.cat([self._squares(block.contiguous(), ascending, capacity) for block in blocks])
        return squares[:, columns].sqrt().to(queries.device)

    def _squares(self, queries: Tensor, ranks: list[int], capacity: int) -> Tensor:
        """[N, R] squared distances, for ascending ranks."""
        from .triton_kernels import ranked_kernel

        leaves = self._leaves
        # Twice as many points as are wanted give a bound that few other leaves lie within.
        first_leaves = 1 << (-(-2 * ranks[-1] // leaves.leaf_size) - 1).bit_length()
        squares, candidates = (queries.new_empty(len(queries), size) for size in (len(ranks), capacity))
        ranks_there = torch.tensor(ranks, dtype=torch.int32, device=queries.device)
        tensors = queries, leaves.points, leaves.lower, leaves.upper, ranks_there, squares, candidates
        sizes = {"DIM": queries.shape[1], "RANKS": len(ranks), "CAPACITY": capacity}
        tiles = {"PLACES": _LEAF_SIZE, "LEAVES": _LEAVES_AT_ONCE, "num_warps": max(1, capacity // 512)}
        with torch.cuda.device_of(queries):
            ranked_kernel[(len(queries),)](
                *tensors, leaves.leaf_count, leaves.leaf_size, first_leaves, **sizes, **tiles, **_OPTIONS
            )
        return squares


def nearest_point_fused(queries: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """`nearest_point` by a kernel; of equally near points the first."""
    squares = torch.empty(len(queries), dtype=torch.float32, device=queries.device)
    indices = torch.empty(len(queries), dtype=torch.int32, device=queries.device)
    if not len(queries):
        return squares, indices.long()
    from .triton_kernels import nearest_kernel

    tensors = queries.contiguous(), points.to(queries.device).T.contiguous(), squares, indices
    sizes = {"DIM": queries.shape[1], "QUERIES": _QUERY_TILE, "POINTS": _POINT_TILE}
    with torch.cuda.device_of(queries):
        nearest_kernel[(-(-len(queries) // _QUERY_TILE),)](*tensors, len(queries), len(points), **sizes, **_OPTIONS)
    return squares.sqrt(), indices.long()


class KDLeaves(NamedTuple):
    """Points grouped into boxes.

    Attributes:
        points: [d, L * n], leaf after leaf; places that hold no point are infinite.
        lower, upper: [d, L] the corners of each leaf's box; an empty leaf lies infinitely far from everywhere.
        leaf_size: n, the same for every leaf.
    """

    points: Tensor
    lower: Tensor
    upper: Tensor
    leaf_size: int

    leaf_count = property(lambda self: self.lower.shape[1], doc="L, a power of two.")


def kd_leaves(points: Tensor, most: int) -> KDLeaves:
    """Halve the points [S, d] at the median of their widest dimension until a part has at most `most` of them."""
    size, dim = points.shape
    depth = max(0, math.ceil(math.log2(size / most)))
    leaf_size = math.ceil(size / 2**depth)
    padding = points.new_full((leaf_size * 2**depth - size, dim), torch.inf)
    ordered = torch.cat([points, padding]).unsqueeze(0)
    for _ in range(depth):
        lower, upper = _corners(ordered)
        widest = (upper - lower).argmax(dim=1)
        along = ordered.gather(2, widest[:, None, None].expand(-1, ordered.shape[1], 1)).squeeze(2)
        order = along.argsort(dim=1)  # padding last
        ordered = ordered.gather(1, order.unsqueeze(2).expand(-1, -1, dim))
        ordered = ordered.reshape(2 * len(ordered), -1, dim)
    places, *corners = (rows.T.contiguous() for rows in (ordered.reshape(-1, dim), *_corners(ordered)))
    return KDLeaves(places, *corners, leaf_size)


def _corners(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest coordinates [P, d] of the points, not the padding, of parts [P, n, d]."""
    lower = parts.amin(dim=1)
    upper = parts.masked_fill(parts.isinf(), -torch.inf).amax(dim=1)
    return lower, upper
