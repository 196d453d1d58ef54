"""Points in the order of a k-d tree's leaves, built by sorting whole levels at once, on any device.

Shapes: S points, d dimensions, L leaves of n places each.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KDLeaves:
    """Points grouped into boxes.

    Attributes:
        points: [d, L * n], leaf after leaf; places that hold no point are infinite.
        lower, upper: [d, L] the corners of each leaf's box; an empty leaf lies infinitely far from everywhere.
        leaf_size: n.
    """

    points: Tensor
    lower: Tensor
    upper: Tensor
    leaf_size: int

    @property
    def leaf_count(self) -> int:
        """L, a power of two."""
        return self.lower.shape[1]


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
    lower, upper = _corners(ordered)
    return KDLeaves(
        points=ordered.reshape(-1, dim).T.contiguous(),
        lower=lower.T.contiguous(),
        upper=upper.T.contiguous(),
        leaf_size=leaf_size,
    )


def _corners(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest coordinates [P, d] of the points, not the padding, of parts [P, n, d]."""
    lower = parts.amin(dim=1)
    upper = parts.masked_fill(parts.isinf(), -torch.inf).amax(dim=1)
    return lower, upper
