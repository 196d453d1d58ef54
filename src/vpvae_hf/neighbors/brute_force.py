"""Search among all points, on any device. Shapes: S points, N queries, R ranks, k candidates, d dimensions."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vpvae_hf.tensors import float32_products

from .base import NeighborIndex

# Entries of one block of the [queries x points] distance matrix: 8 MiB in float32 on a CPU, which stay in its cache,
# and 256 MiB elsewhere, which take few launches.
_CPU_BLOCK_ENTRIES, _BLOCK_ENTRIES = 1 << 21, 1 << 26
_POINT_BLOCK = 1 << 18
# Candidates in addition to the greatest rank: _MARGIN, or one per _MARGIN_PART ranks if these are more. With them the
# results of nearly all queries can be proven.
_MARGIN, _MARGIN_PART = 16, 4
# Relative rounding of float32, and about the least square that it holds in full precision.
_UNIT, _TINY = 2.0**-24, 2.0**-120
# Squares above this might overflow float32 when they are added.
_MOST_SQUARE = 1e37


class TorchIndex(NeighborIndex):
    """Exact, on any device: candidates by a matrix product, their distances by direct differences.

    The product |p|^2 - 2xp has a rounding error, so it is lowered by a bound of that error. If the candidates of a
    query then cannot be proven to include all nearest points (because it has many equally near neighbours, or its
    distances are a thousandth of the points' spread), the query is compared with all points directly. Finding out
    whether there are such queries takes one synchronization.
    """

    def __init__(self, points: Tensor):
        super().__init__(points)
        self._points = points.detach().to(torch.float32, copy=True)
        self._center = self._points.mean(dim=0)

    def distances_unchecked(self, queries: Tensor, ranks: tuple[int, ...]) -> Tensor:
        here = queries.to(self.device)
        # In full float32, whatever autocast and the settings of TF32 say.
        with float32_products("highest"), torch.autocast(self.device.type, enabled=False):
            parts = [self._of_candidates(part, max(ranks)) for part in query_blocks(here, min(self.size, _POINT_BLOCK))]
        nearest, proven = (torch.cat(each) for each in zip(*parts, strict=True))
        if not proven.all():
            nearest[~proven] = self._of_all(here[~proven], max(ranks))
        return torch.stack([nearest[:, rank - 1] for rank in ranks], dim=1).to(queries.device)

    def _of_candidates(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Ascending distances [N, count] to the nearest candidates, and whether no other point is nearer, [N]."""
        centered = queries - self._center
        keys, ids, largest = self._candidates(centered, count + max(_MARGIN, count // _MARGIN_PART))
        # If a query is not finite, or overflows, all its keys are NaN, and ids may be those of padding.
        candidates = self._points[ids.clamp(max=self.size - 1)]
        distances = direct_distances(queries.unsqueeze(1), candidates).squeeze(1)
        nearest = distances.topk(count, largest=False).values  # sorted
        if keys.shape[1] == self.size:
            return nearest, torch.ones_like(keys[:, 0], dtype=torch.bool)
        # A key is at most |x - p|^2 - |x|^2 + (d + 7) u |x|^2, u the unit of rounding: its product sums d + 1 terms,
        # whose sizes add up to |p|^2 + 2|x||p| <= 2|p|^2 + |x|^2, and errs by d + 1 units of that; |p|^2 itself errs by
        # d + 1 units, and centering by 2 (|x| + |p|)^2. The part in |p|^2, at most 3d + 9 units, was taken
        # off the key. Both numbers of units have two to spare, for products of the bounds themselves.
        squares, greatest = centered.square().sum(dim=1), keys.amax(dim=1)
        rounding = (2 * self.dim + 9) * squares + 4 * (greatest.abs() + squares)
        least_left_out = greatest + squares - _UNIT * rounding - _TINY
        proven = nearest[:, -1].square() * (1 + (2 * self.dim + 10) * _UNIT) <= least_left_out
        return nearest, proven & (squares + largest < _MOST_SQUARE)

    def _candidates(self, centered: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The least keys |p|^2 - 2xp, [N, k], k at most `count`, the ids of their points, and the greatest |p|^2."""
        lowered = (3 * self.dim + 9) * _UNIT
        found, offset, largest = [], 0, centered.new_zeros(())
        for block in self._points.split(_POINT_BLOCK):
            least = min(count, len(block))
            stretch = _stretch(len(block), least)
            block = block - self._center
            squares = block.square().sum(dim=1)
            largest = torch.maximum(largest, squares.amax())
            padding = -len(block) % stretch
            squares = torch.constant_pad_nd(squares * (1 - lowered), (0, padding), torch.inf)
            block = torch.constant_pad_nd(block, (0, 0, 0, padding))
            keys, ids = _least(torch.addmm(squares, centered, block.T, alpha=-2), least, stretch)
            found.append((keys, ids + offset))
            offset += _POINT_BLOCK
        keys, ids = (torch.cat(each, dim=1) for each in zip(*found, strict=True))
        keys, places = keys.topk(min(count, self.size), largest=False, sorted=False)
        return keys, ids.gather(1, places), largest

    def _of_all(self, queries: Tensor, count: int) -> Tensor:
        """Ascending distances [N, count] to the nearest points, by direct differences alone."""
        rows = []
        for part in query_blocks(queries, min(self.size, _POINT_BLOCK)):
            nearest = part.new_empty(len(part), 0)
            for block in self._points.split(_POINT_BLOCK):
                candidates = torch.cat([nearest, direct_distances(part, block)], dim=1)
                nearest = candidates.topk(min(count, candidates.shape[1]), largest=False).values
            rows.append(nearest)
        return torch.cat(rows)


def direct_distances(queries: Tensor, points: Tensor) -> Tensor:
    """[..., N, S] Euclidean distances; the matrix-multiply form of cdist loses half the digits of small ones."""
    return torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist")


def query_blocks(queries: Tensor, width: int) -> Iterator[Tensor]:
    """Parts of the queries, so small that their distance matrix to `width` points stays within the memory limit."""
    entries = _CPU_BLOCK_ENTRIES if queries.device.type == "cpu" else _BLOCK_ENTRIES
    return iter(queries.split(max(1, entries // width)))


def _stretch(width: int, count: int) -> int:
    """The group size with which `_least` finds the `count` least of `width` values."""
    return 1 << round(math.log2(width / count) / 2)


def _least(values: Tensor, count: int, stretch: int) -> tuple[Tensor, Tensor]:
    """The `count` least of each row [N, W], W a multiple of the stretch, and their places.

    They lie in those `count` groups of `stretch` values that have the least minima, so a row is sorted in two parts of
    about sqrt(W * count) values instead of W.
    """
    groups = values.unflatten(1, (stretch, -1))
    chosen = groups.amin(dim=1).topk(count, largest=False, sorted=False).indices
    inside = groups.gather(2, chosen.unsqueeze(1).expand(-1, stretch, -1)).flatten(1)
    least, places = inside.topk(count, largest=False, sorted=False)
    ids = places // count * groups.shape[2] + chosen.gather(1, places % count)
    return least, ids
