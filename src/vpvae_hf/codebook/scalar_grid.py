"""A uniform grid on the unit cube and its mixed-radix codes, eqs. (15) and (18).

Shapes: d dimensions, levels L_1..L_d, K = L_1 * ... * L_d codes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vpvae_hf.settings import is_integer, require
from vpvae_hf.tensors import constant

# The paper's settings: the level counts recommended for finite scalar quantization.
_PUBLISHED_LEVELS = {256: (8, 6, 5), 1024: (8, 5, 5, 5), 4096: (7, 5, 5, 5, 5), 16384: (8, 8, 8, 6, 5)}


class ScalarGrid:
    """Cells of equal size on [0, 1]^d, L_i >= 2 of them in dimension i."""

    def __init__(self, levels: Sequence[int]):
        self.levels = tuple(levels)
        self.codebook_size = math.prod(self.levels)

    def cells(self, unit: Tensor) -> Tensor:
        """Cell of each coordinate: l_i = clip(floor(L_i z_i), 0, L_i - 1), [..., d] int64 from [..., d] in [0, 1]."""
        levels = self.levels_like(unit)
        return (unit * levels).floor().clamp(min=0).minimum(levels - 1).long()

    def centroids(self, cells: Tensor) -> Tensor:
        """Middle of each cell: (l_i + 1/2) / L_i, [..., d] float32 in (0, 1)."""
        return (cells.float() + 0.5) / self.levels_like(cells)

    def to_codes(self, cells: Tensor) -> Tensor:
        """One integer per vector: sum_i l_i * prod_{j<i} L_j, [...] int64 from [..., d]."""
        return (cells * self._radices(cells)).sum(dim=-1)

    def to_cells(self, codes: Tensor) -> Tensor:
        """The inverse of `to_codes`: [..., d] int64 from [...]."""
        levels = constant(self.levels, torch.long, codes)
        return codes.unsqueeze(-1).div(self._radices(codes), rounding_mode="floor") % levels

    def levels_like(self, like: Tensor) -> Tensor:
        """[d] float32 levels, on a tensor's device."""
        return constant(self.levels, torch.float32, like)

    def _radices(self, like: Tensor) -> Tensor:
        radices = tuple(math.prod(self.levels[:i]) for i in range(len(self.levels)))
        return constant(radices, torch.long, like)


def complete_levels(levels: Sequence[int] | None, codebook_size: int | None, latent_dim: int | None) -> tuple[int, ...]:
    """Check levels against a size and dimension; without levels, `levels_for_codebook_size` (1024) chooses them."""
    for name, value in (("codebook_size", codebook_size), ("latent_dim", latent_dim)):
        require(value is None or (is_integer(value) and value >= 1), name, value, "a positive integer")
    if levels is None:
        return levels_for_codebook_size(codebook_size or 1024, latent_dim)
    require(isinstance(levels, Sequence), "levels", levels, "a list of integers")
    valid = len(levels) > 0 and all(is_integer(level) and level >= 2 for level in levels)
    require(valid, "levels", levels, "integers of at least 2, one for each dimension")
    levels, size = tuple(levels), math.prod(levels)
    if latent_dim not in (None, len(levels)):
        raise ValueError(
            f"levels {levels} have {len(levels)} dimensions but latent_dim={latent_dim}; "
            "give one level for each latent dimension, or leave latent_dim out"
        )
    if codebook_size not in (None, size):
        raise ValueError(
            f"levels {levels} make {size} codes but codebook_size={codebook_size}; leave one of the two out"
        )
    return levels


def levels_for_codebook_size(codebook_size: int, latent_dim: int | None = None) -> tuple[int, ...]:
    """Choose levels whose product is near a codebook size.

    For 256, 1024, 4096 and 16384 these are the paper's levels (products 240, 1000, 4375, 15360); for other sizes, or
    another dimension, nearly equal levels (within 2 of equal ones) whose product is nearest to the size.

    Args:
        codebook_size: the K to come near to, at least 2.
        latent_dim: number of dimensions; by default the paper's, or as many as give each about 5.5 levels.

    Raises:
        ValueError: codebook_size is below 2**latent_dim, the product if each dimension has 2 levels.
    """
    published = _PUBLISHED_LEVELS.get(codebook_size)
    if published and latent_dim in (None, len(published)):
        return published
    if latent_dim is None:
        latent_dim = max(1, round(math.log(max(codebook_size, 2)) / math.log(5.5)))
    if codebook_size < 2**latent_dim:
        raise ValueError(
            f"codebook_size={codebook_size} is too small for latent_dim={latent_dim}: "
            f"with at least 2 levels per dimension it is {2**latent_dim} or more"
        )
    even = codebook_size ** (1 / latent_dim)
    candidates = _decreasing_levels(latent_dim, max(2, math.floor(even) - 2), math.ceil(even) + 2)
    return min(candidates, key=lambda levels: (abs(math.prod(levels) - codebook_size), levels[0] - levels[-1]))


def _decreasing_levels(count: int, low: int, high: int) -> list[tuple[int, ...]]:
    if count == 0:
        return [()]
    return [(first, *rest) for first in range(low, high + 1) for rest in _decreasing_levels(count - 1, low, first)]
