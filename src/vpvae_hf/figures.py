"""The look of all figures, in one place; matplotlib is imported when the first is drawn."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from .settings import installed_with

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The colours of Okabe and Ito (2008), which people with any colour vision can tell apart, with grey in place of yellow,
# which is faint on white. Colours and marks differ in number, so up to 35 lines differ in one or both.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#767676")
MARKERS = ("o", "s", "^", "D", "v")
_STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "errorbar.capsize": 3,
    "legend.frameon": False,
    "savefig.dpi": 120,
}


@contextmanager
def drawn_figure(
    file: str | os.PathLike,
    rows: int = 1,
    columns: int = 1,
    *,
    panel: tuple[float, float] = (4.2, 3.6),
    margin: tuple[float, float] = (0.0, 0.0),
    shared: bool = False,
) -> Iterator[tuple["Figure", np.ndarray]]:
    """A context with a figure and its panels [rows, columns] to draw on; at its end the figure is saved.

    Args:
        panel: width and height of a panel, inches.
        margin: width and height beside and above the panels, inches.
        shared: whether all panels have the same axes.
    """
    with installed_with("matplotlib"):
        import matplotlib
        from matplotlib.figure import Figure
    style = _STYLE | {"axes.prop_cycle": matplotlib.cycler(color=COLOURS)}
    with matplotlib.rc_context(style):
        size = [count * each + more for count, each, more in zip((columns, rows), panel, margin, strict=True)]
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots(rows, columns, sharex=shared, sharey=shared, squeeze=False)
        figure.savefig(file)
