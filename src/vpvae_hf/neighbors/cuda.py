"""Exact search on CUDA, by fused kernels. Shapes: S points, N queries, d dimensions, L leaves of n places each."""

import functools
import importlib.util
import math
import os
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vpvae_hf.tensors import constant

from .base import NeighborIndex
from .brute_force import TorchIndex, query_blocks

# Above this a query visits most leaves, and a matrix product is faster.
_MOST_DIMENSIONS = 8
# Candidates that one program holds while it searches. More would spill its registers; the default queue needs 512.
_LEAST_CAPACITY, _MOST_CAPACITY = 512, 1024
_LEAF_SIZE = 128
# Places of a leaf are a multiple of this, so that loads are as wide as they can be, whatever the number of points.
_PLACES = 16
_LEAVES_PER_GROUP = 64
# Larger tiles spill registers at d = 16.
_QUERY_TILE, _POINT_TILE = 16, 64
# With fewer points than this, merging the parts of a search costs more than the idle processors would.
_LEAST_PART = 4096
# Fused multiply-adds round differently from what the CPU computes, and a code must not depend on the device.
_OPTIONS = {"enable_fp_fusion": False}

_kernels_fail = False  # once true, it stays true in this process


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def runs_kernels(device: torch.device) -> bool:
    """Whether kernels can run on tensors of a device: on CUDA, and in triton's interpreter on any."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return not _kernels_fail and has_triton() and (device.type == "cuda" or interpreted)


class TritonIndex(NeighborIndex):
    """Exact: the points lie in the leaves of a k-d tree; a query visits only leaves that can hold a nearer point.

    `TorchIndex` searches in more than 8 dimensions, at ranks above 256, and if the kernel cannot be launched.

    Raises:
        ValueError: points on another device than CUDA, or triton is not installed.
    """

    def __init__(self, points: Tensor):
        super().__init__(points)
        if not _kernels_fail and not runs_kernels(self.device):
            missing = "triton is not installed" if not has_triton() else f"the points are on {self.device}"
            raise ValueError(
                f'the "triton" search needs triton and points on a CUDA device, but {missing}; '
                'use "kdtree" on a CPU, "torch" elsewhere, or "auto"'
            )
        points = points.detach().float()
        if self.dim > _MOST_DIMENSIONS:
            self._all_points = TorchIndex(points)
        else:
            self._leaves = kd_leaves(points, _LEAF_SIZE)
            self._boxes = _boxes(self._leaves)

    @functools.cached_property
    def _all_points(self) -> TorchIndex:
        places = self._leaves.points
        return TorchIndex(places[:, places[0].isfinite()].T)

    def distances_unchecked(self, queries: Tensor, ranks: tuple[int, ...]) -> Tensor:
        capacity = max(_LEAST_CAPACITY, 4 << (max(ranks) - 1).bit_length())
        if self.dim > _MOST_DIMENSIONS or capacity > _MOST_CAPACITY:
            return self._all_points.distances_unchecked(queries, ranks)
        if not len(queries):
            return queries.new_empty(0, len(ranks))
        found = []
        # A query that is infinitely far visits no leaf, whereas NaN would visit leaves that do not exist.
        here = queries.to(self.device).nan_to_num(torch.inf, torch.inf, -torch.inf)
        for block in query_blocks(here, capacity):
            squares = self._squares(block.contiguous(), ranks, capacity)
            if squares is None:
                return self._all_points.distances_unchecked(queries, ranks)
            found.append(squares)
        return torch.cat(found).sqrt().to(queries.device)

    def _squares(self, queries: Tensor, ranks: tuple[int, ...], capacity: int) -> Tensor | None:
        """[N, R] squared distances; None if the kernel cannot be launched."""
        leaves, last_rank = self._leaves, max(ranks)
        # A bound from twice as many points as are wanted leaves few other leaves to visit.
        first_leaves = 1 << (-(-2 * last_rank // leaves.leaf_size) - 1).bit_length()
        squares, candidates = (queries.new_empty(len(queries), size) for size in (len(ranks), capacity))
        launched = _launch(
            "ranked_kernel",
            (len(queries),),
            queries,
            leaves.points,
            *self._boxes,
            constant(ranks, torch.int32, queries),
            squares,
            candidates,
            last_rank,
            leaves.points.shape[1],
            leaves.leaf_size,
            min(first_leaves, leaves.leaf_count),
            self._boxes.lower.shape[1],
            self._boxes.group_lower.shape[1],
            DIM=self.dim,
            RANKS=len(ranks),
            CAPACITY=capacity,
            PLACES=_LEAF_SIZE,
            LEAVES=_LEAVES_PER_GROUP,
            num_warps=capacity // 512,
        )
        return squares if launched else None


def nearest_point_fused(queries: Tensor, points: Tensor) -> tuple[Tensor, Tensor] | None:
    """`nearest_point` by a kernel; it takes the first of equally near points. None if the kernel cannot be launched."""
    blocks = -(-len(queries) // _QUERY_TILE)
    # Few queries would leave processors idle, so several processors share a query, each searching a part of the points.
    parts = max(1, min(-(-_processors(queries.device) // max(1, blocks)), len(points) // _LEAST_PART))
    part_size = -(-len(points) // (parts * _POINT_TILE)) * _POINT_TILE
    squares = torch.empty(len(queries), parts, dtype=torch.float32, device=queries.device)
    indices = torch.empty(len(queries), parts, dtype=torch.int32, device=queries.device)
    launched = not len(queries) or _launch(
        "nearest_kernel",
        (blocks, parts),
        queries.contiguous(),
        points.to(queries.device).T.contiguous(),
        squares,
        indices,
        len(queries),
        len(points),
        part_size,
        DIM=queries.shape[1],
        QUERIES=_QUERY_TILE,
        POINTS=_POINT_TILE,
    )
    if not launched:
        return None
    least = squares.amin(dim=1)
    # Parts are in the order of the points, so the first of equals has the least index.
    indices = indices.masked_fill(squares > least.unsqueeze(1), len(points)).amin(dim=1) if parts > 1 else indices[:, 0]
    return least.sqrt(), indices.long()


def _launch(kernel: str, grid: tuple[int, ...], *arguments: Any, **constants: int) -> bool:
    """Launch a kernel; False if that fails. Then a warning says why, and no kernel is tried again."""
    global _kernels_fail
    if _kernels_fail:
        return False
    try:
        from . import triton_kernels

        with torch.cuda.device_of(arguments[0]):
            getattr(triton_kernels, kernel)[grid](*arguments, **constants, **_OPTIONS)
    except Exception as error:  # of any kind: triton's own, of the driver, or of the C compiler that it calls
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
            raise
        _kernels_fail = True
        warnings.warn(
            f"the CUDA kernels of the search cannot be used here, so that slower operations of torch replace them: "
            f"{type(error).__name__}: {error}",
            stacklevel=2,
        )
        return False
    return True


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


class Boxes(NamedTuple):
    """Corners of the leaves' boxes and of the boxes around groups of 64 leaves, each [d, a multiple of 64]."""

    lower: Tensor
    upper: Tensor
    group_lower: Tensor
    group_upper: Tensor


def _boxes(leaves: "KDLeaves") -> Boxes:
    """Padded with boxes that lie infinitely far from everywhere, so that the kernel need not count the real ones."""
    boxes = []
    for corners, nothing in ((leaves.lower, torch.inf), (leaves.upper, -torch.inf)):
        corners = torch.constant_pad_nd(corners, (0, -corners.shape[1] % _LEAVES_PER_GROUP), value=nothing)
        groups = corners.unflatten(1, (-1, _LEAVES_PER_GROUP))
        groups = groups.amin(dim=2) if nothing > 0 else groups.amax(dim=2)
        boxes.append((corners, torch.constant_pad_nd(groups, (0, -groups.shape[1] % _LEAVES_PER_GROUP), value=nothing)))
    (lower, group_lower), (upper, group_upper) = boxes
    return Boxes(lower, upper, group_lower, group_upper)


class KDLeaves(NamedTuple):
    """Points grouped into boxes.

    Attributes:
        points: [d, L * n], leaf after leaf; places that hold no point are infinite.
        lower, upper: [d, L] the corners of each leaf's box; an empty leaf lies infinitely far from everywhere.
        leaf_size: n, the same for every leaf, a multiple of 16.
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
    lower, upper = (corners.T.contiguous() for corners in _corners(ordered))
    ordered = torch.constant_pad_nd(ordered, (0, 0, 0, -leaf_size % _PLACES), torch.inf)
    return KDLeaves(ordered.reshape(-1, dim).T.contiguous(), lower, upper, ordered.shape[1])


def _corners(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest coordinates [P, d] of the points, not the padding, of parts [P, n, d]."""
    lower = parts.amin(dim=1)
    upper = parts.masked_fill(parts.isinf(), -torch.inf).amax(dim=1)
    return lower, upper
