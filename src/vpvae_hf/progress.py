"""Progress bars for long work."""

import sys
from typing import Any

from tqdm.auto import tqdm

from .distributed import rank

# Lines of a bar in a log file: the first after this many seconds, later ones at growing intervals, up to a limit.
_FIRST_LINE_S, _LINE_GROWTH, _MOST_S_BETWEEN_LINES = 10, 0.1, 600
_LINE = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f}%), {elapsed} passed, {remaining} left, {rate_fmt}{postfix}"
_LINE_WITHOUT_TOTAL = "{desc}: {n_fmt}, {elapsed} passed, {rate_fmt}{postfix}"


def progress_bar(*, total: int | None, desc: str, unit: str, shown: bool = True, **settings: Any) -> tqdm:
    """A bar of `tqdm` on stderr, with tqdm's arguments; only the first rank shows it.

    If stderr is no terminal, as under nohup, Slurm or CI, the bar prints a whole line now and then, with the time left,
    and one at its end, instead of redrawing itself. TQDM_DISABLE=1 in the environment hides it.
    """
    bar = tqdm if sys.stderr.isatty() or _in_notebook() else _ProgressLines
    if not shown or rank() > 0:
        settings["disable"] = True  # only then, since it overrides the environment
    return bar(total=total, desc=desc, unit=unit, **settings)


def _in_notebook() -> bool:
    """Whether this runs in a notebook's kernel, whose stderr is no terminal but can redraw bars."""
    kernel = sys.modules.get("ipykernel.kernelapp")
    return kernel is not None and kernel.IPKernelApp.initialized()


class _ProgressLines(tqdm):
    def __init__(self, **settings: Any):
        # With gui=True tqdm leaves drawing and the end to its subclass.
        line = _LINE_WITHOUT_TOTAL if settings["total"] is None else _LINE
        super().__init__(**settings, gui=True, bar_format=line, mininterval=_FIRST_LINE_S, miniters=1)
        if not self.disable:
            self._line_at, self._line_n = self.start_t, None

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        now = self._time()
        if now - self._line_at >= self.mininterval and self.n != self.total:
            print(self, file=sys.stderr, flush=True)
            self._line_at, self._line_n = now, self.n
            grown = _LINE_GROWTH * (now - self.start_t)
            self.mininterval = min(max(_FIRST_LINE_S, grown), _MOST_S_BETWEEN_LINES)

    def clear(self, nolock: bool = False) -> None:
        return  # a line stays

    def close(self) -> None:
        if not self.disable and self._line_n != self.n:
            self._ema_dt = lambda: None  # so that the last line has the mean rate
            print(self, file=sys.stderr, flush=True)
        super().close()
