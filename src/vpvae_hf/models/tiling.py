"""Apply a convolutional stack to overlapping tiles of a large input, in the memory that one tile needs."""

from collections.abc import Callable

import torch
from torch import Tensor


def apply_in_tiles(
    function: Callable[[Tensor], Tensor], inputs: Tensor, *, tile: int, overlap: int, out_tile: int
) -> Tensor:
    """Run `function` on each tile and blend the results, weighted by the distance from the tile's inner edges.

    Args:
        function: [B, tile, tile, C] -> [B, out_tile, out_tile, C'].
        inputs: [B, H, W, C]; a side shorter than `tile` is taken whole.
        tile, overlap: side of a tile and what neighbours share, in input positions.
        out_tile: side of a tile's result.

    Returns:
        [B, H * out_tile / tile, W * out_tile / tile, C'].
    """
    height, width = inputs.shape[1:3]
    out_height, out_width = height * out_tile // tile, width * out_tile // tile
    total = weights = None
    for top in tile_starts(height, tile, overlap):
        for left in tile_starts(width, tile, overlap):
            result = function(inputs[:, top : top + tile, left : left + tile])
            y, x = top * out_tile // tile, left * out_tile // tile
            rows, columns = result.shape[1:3]
            ramp = max(1, overlap * out_tile // tile)
            weight = _edge_ramp(rows, y, out_height, ramp)[:, None] * _edge_ramp(columns, x, out_width, ramp)
            weight = weight[..., None].to(result)
            if total is None:
                total = result.new_zeros(len(result), out_height, out_width, result.shape[-1])
                weights = result.new_zeros(out_height, out_width, 1)
            total[:, y : y + rows, x : x + columns] += weight * result
            weights[y : y + rows, x : x + columns] += weight
    return total / weights


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """First positions of tiles that cover a side; the last tile ends at its end."""
    if size <= tile:
        return [0]
    return [*range(0, size - tile, tile - overlap), size - tile]


def _edge_ramp(length: int, start: int, size: int, ramp: int) -> Tensor:
    """Weights that rise from each edge of a tile, except from an edge of the whole input."""
    position = torch.arange(length) + 0.5
    from_start = position if start > 0 else torch.full_like(position, torch.inf)
    from_end = length - position if start + length < size else torch.full_like(position, torch.inf)
    return (torch.minimum(from_start, from_end) / ramp).clamp(max=1)
