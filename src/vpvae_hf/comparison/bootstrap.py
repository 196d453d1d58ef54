"""How certain a difference is. Shapes: S starts, n items per start, B draws."""

import functools
from dataclasses import dataclass

import numpy as np

_DRAWS = 4000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean, and the bounds of its interval.

    Attributes:
        starts, items: how many starts and items the mean is over.
    """

    mean: float
    low: float
    high: float
    starts: int
    items: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def bootstrap_interval(values: np.ndarray, *, seed: int = 0) -> Interval | None:
    """The mean of values [S, n] and its 95% bootstrap interval over starts and items.

    Each draw takes S starts and n items with replacement. All starts of a draw have the same items, since all starts
    were measured on the same items: an item that is difficult for one start is difficult for all. With one start, only
    items are drawn, and the interval does not say what another start would give.

    Args:
        values: e.g. differences between two methods. An item that has no value, NaN, for some start is left out.

    Returns:
        None if no item is left.
    """
    values = values[:, ~np.isnan(values).any(axis=0)]
    starts, items = values.shape
    if not items:
        return None
    means = ((_shares(items, seed) @ values.T) * _shares(starts, seed + 1)).sum(axis=1)
    low, high = np.quantile(means, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Interval(float(values.mean()), float(low), float(high), starts, items)


@functools.lru_cache(maxsize=16)
def _shares(count: int, seed: int) -> np.ndarray:
    """[B, count] how often each of `count` is drawn, as a share of a draw; all values of a report use these draws."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_DRAWS) / count
