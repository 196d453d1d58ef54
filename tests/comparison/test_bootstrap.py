"""Intervals of differences, on made-up differences of known means."""

import numpy as np
import pytest

from vpvae_hf.comparison.bootstrap import bootstrap_interval


def differences(random, *, mean, starts=1, items=100, of_start=0.0, of_item=1.0):
    """[starts, items]: a mean, what each start adds, what each item adds at every start, and noise."""
    start, item = random.normal(0, of_start, (starts, 1)), random.normal(0, of_item, (1, items))
    return mean + start + item + random.normal(0, 0.3, (starts, items))


@pytest.mark.parametrize(("starts", "of_start"), [(1, 0.0), (4, 0.0), (10, 0.5)])
def test_intervals_hold_the_mean_as_often_as_they_say(starts, of_start):
    """Also if items behave alike at all starts and if starts differ: then more of the same items add little."""
    random = np.random.default_rng(0)
    given = (differences(random, mean=0.3, starts=starts, of_start=of_start) for _ in range(200))
    found = [bootstrap_interval(values) for values in given]
    held = np.mean([each.low <= 0.3 <= each.high for each in found])
    assert 0.87 <= held <= 0.99
    assert np.mean([each.mean for each in found]) == pytest.approx(0.3, abs=0.05)


def test_the_width_is_that_of_starts_and_items():
    """1.96 standard errors to each side."""
    random = np.random.default_rng(1)
    for starts, of_start, of_item in ((1, 0.0, 1.0), (30, 0.0, 1.0), (30, 1.0, 0.1)):
        values = differences(random, mean=0, starts=starts, items=400, of_start=of_start, of_item=of_item)
        interval = bootstrap_interval(values)
        error = np.sqrt(of_item**2 / 400 + of_start**2 / starts + 0.3**2 / (400 * starts))
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.25)


def test_a_difference_is_told_from_none():
    random = np.random.default_rng(2)
    clear = bootstrap_interval(differences(random, mean=-0.5, starts=2))
    none = bootstrap_interval(differences(random, mean=0.0, starts=2))
    assert (clear.excludes_zero, none.excludes_zero) == (True, False)
    assert clear.low < clear.mean < clear.high < 0
    assert (clear.starts, clear.items) == (2, 100)


def test_items_without_a_value_are_left_out():
    values = differences(np.random.default_rng(3), mean=0.2, starts=2, items=50)
    holed = np.insert(values, 7, [np.nan, 9.0], axis=1)
    assert bootstrap_interval(holed) == bootstrap_interval(values)
    assert bootstrap_interval(np.full((2, 3), np.nan)) is None


def test_the_same_values_have_the_same_interval():
    values = differences(np.random.default_rng(4), mean=0.2, starts=3)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values)
