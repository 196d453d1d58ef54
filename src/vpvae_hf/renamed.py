"""Former public names: they work until version 0.3, with a warning."""

import warnings
from typing import Any


def warn_of_former_name(former: str, present: str) -> None:
    """Warn that the caller's caller uses a former name."""
    warnings.warn(
        f"{former} is called {present} now; the former name ends with version 0.3", DeprecationWarning, stacklevel=3
    )


class FormerMethod:
    """A method's former name: `sample = FormerMethod("read")` in the body of its class."""

    def __init__(self, present: str):
        self._present = present

    def __set_name__(self, owner: type, name: str) -> None:
        self._former = name

    def __get__(self, instance: Any, owner: type) -> Any:
        def present(*arguments: Any, **settings: Any) -> Any:  # warns if it is called, not if it is looked up
            warn_of_former_name(f"{owner.__name__}.{self._former}", self._present)
            return getattr(owner if instance is None else instance, self._present)(*arguments, **settings)

        return present
