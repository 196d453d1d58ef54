"""Pictures of codes in which the code at a pixel can be looked up."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# A chart is about this many pixels wide; the sides of its cells are whole pixels.
_WIDTH = 768
_GROUND = 255
# How much of their colour other codes keep when one is chosen.
_FADED = 0.25


@dataclass(frozen=True, eq=False)
class Chart:
    """A picture [height, width, 3] uint8 of equal cells.

    Attributes:
        values: [rows, columns] what each cell stands for: a code, or a code's place; -1 for nothing.
    """

    picture: np.ndarray
    values: Tensor

    def at(self, x: int, y: int) -> int | None:
        """The value of the cell that a pixel lies in; None if it lies in no cell, or the cell stands for nothing."""
        height, width = (size // count for size, count in zip(self.picture.shape, self.values.shape, strict=False))
        row, column = y // height, x // width
        if not (0 <= row < self.values.shape[0] and 0 <= column < self.values.shape[1]):
            return None
        value = int(self.values[row, column])
        return None if value < 0 else value


def code_map(places: Tensor, codes: Tensor, colours: Tensor, chosen: int | None = None) -> Chart:
    """A map of codes in their colours. If one is chosen, the others are faded and its place is framed.

    Args:
        places: [rows, columns] the index of each cell's code, -1 for none.
        codes: [N], or [N, G] if a token has several.
        colours: [N, 3] in [0, 1].
        chosen: a place in 0..N-1.
    """
    shades = colours.clone()
    if chosen is not None:
        same = (codes == codes[chosen]).view(len(codes), -1).all(dim=1)
        shades[~same] = 1 - _FADED * (1 - shades[~same])
    cell = max(1, _WIDTH // places.shape[1])
    cells = torch.where((places < 0)[..., None], _GROUND / 255, shades[places.clamp(min=0)])
    picture = _uint8(cells).repeat(cell, axis=0).repeat(cell, axis=1)
    if chosen is not None:
        ((row, column),) = (places == chosen).nonzero().tolist()
        _frame(picture, row * cell, column * cell, cell)
    return Chart(picture, places)


def sheet_of_cells(cells: np.ndarray, values: Tensor) -> Chart:
    """A chart of small pictures [rows, columns, height, width, 3] uint8."""
    rows, columns, height, width, _ = cells.shape
    return Chart(cells.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3), values)


def sheet_shape(count: int, aspect: float = 1.0) -> tuple[int, int]:
    """Rows and columns of a nearly square chart of `count` cells that are `aspect` times as wide as high."""
    columns = max(1, round((count / aspect) ** 0.5))
    return -(-count // columns), columns


def _frame(picture: np.ndarray, top: int, left: int, side: int) -> None:
    """Draw a black and a white line around a cell, as far as they lie within the picture."""
    height, width = picture.shape[:2]
    for distance, shade in ((2, 0), (1, 255)) if side > 2 else ((3, 0), (2, 0), (1, 255)):
        above, before = max(0, top - distance), max(0, left - distance)
        below, behind = min(height, top + side + distance) - 1, min(width, left + side + distance) - 1
        picture[above, before : behind + 1] = picture[below, before : behind + 1] = shade
        picture[above : below + 1, before] = picture[above : below + 1, behind] = shade


def _uint8(colours: Tensor) -> np.ndarray:
    return (colours * 255).round().to(torch.uint8).numpy()
