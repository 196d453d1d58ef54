"""Checks of settings, and the messages that all of them share."""

import difflib
import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, Literal

# If there are more valid names than this, a message gives only the nearest, if there is one.
_LISTED_NAMES = 30
# Number formats that encoder and decoder of a saved tokenizer may compute in.
DTYPES = ("float32", "bfloat16", "float16")
# Distances between latents: Euclidean, or by how much the decoder's output changes.
Metric = Literal["euclidean", "decoder"]
# How VP displaces latents in training, the default first.
Perturbation = Literal["random_codebook", "metropolis", "always_accept"]


def require(holds: bool, name: str, value: Any, valid: str) -> None:
    """Raise a ValueError that names the setting, its value and what is valid, unless the condition holds."""
    if not holds:
        raise ValueError(f"{name} must be {valid}, got {value!r}")


@contextmanager
def installed_with(packages: str) -> Iterator[None]:
    """A context for imports of packages that may be missing: its error says how to install them."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{error.name} is missing; install it with: pip install {packages}") from error


def is_integer(value: Any) -> bool:
    """Whether a setting is an integer; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a setting is a finite number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch, also within lists, as Python's own numbers and lists."""
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value.tolist() if hasattr(value, "tolist") else value


def require_integer(name: str, value: Any, least: int) -> None:
    """Raise a ValueError unless the value is an integer of at least `least`."""
    require(is_integer(value) and value >= least, name, value, f"an integer of at least {least}")


def require_count(name: str, value: Any) -> None:
    """Raise a ValueError unless a setting is None or an integer of at least 1."""
    require(value is None or (is_integer(value) and value >= 1), name, value, "an integer of at least 1, or null")


def require_weight(name: str, value: Any) -> None:
    """Raise a ValueError unless the value is a finite number of at least 0."""
    require(is_number(value) and value >= 0, name, value, "a number of at least 0")


def require_name(name: str, value: Any, valid: Collection[str]) -> None:
    """Raise a ValueError, with the nearest valid name, unless the value of a setting is one of some names."""
    if value not in valid:
        raise ValueError(f"unknown {name} {value!r}; {did_you_mean(str(value), valid)}")


def require_share(name: str, value: Any) -> None:
    """Raise a ValueError unless the value is a number from 0 to 1."""
    require(is_number(value) and 0 <= value <= 1, name, value, "a number in [0, 1]")


def nearest_name(name: str, valid: Collection[str], cutoff: float = 0.6) -> str | None:
    """The valid name that is most similar to a misspelt one; None if none is similar.

    Args:
        cutoff: the least similarity, from 0 to 1, as `difflib.get_close_matches` measures it.
    """
    by_lower_case = {each.lower(): each for each in valid}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=cutoff)
    return by_lower_case[near[0]] if near else None


def did_you_mean(name: str, valid: Collection[str], cutoff: float = 0.6) -> str:
    """The end of a message about an unknown name: the nearest valid one, and all of them if they are not many."""
    near = nearest_name(name, valid, cutoff)
    hint = [] if near is None else [f"did you mean {near!r}?"]
    if near is None or len(valid) <= _LISTED_NAMES:
        hint.append(f"valid: {', '.join(valid)}")
    return " ".join(hint)


def refuse_unknown_arguments(arguments: Iterable[str], method: str, known: Iterable[str]) -> None:
    """Raise a TypeError, with the nearest of some names, for arguments that would be passed on and ignored."""
    known = sorted({*known} - {"self", "args", "kwargs"})
    for name in arguments:
        if name not in known:
            raise TypeError(f"{name} is no argument of {method}; {did_you_mean(name, known)}")
