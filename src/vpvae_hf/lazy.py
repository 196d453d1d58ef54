"""Late imports: packages whose public names are imported when they are first used (PEP 562)."""

import gc
import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from .renamed import warn_of_former_name


def import_quickly(name: str, package: str | None = None) -> ModuleType:
    """`importlib.import_module` while Python's garbage collector pauses.

    Large libraries create millions of objects that stay, and the collector's repeated scans of these take a quarter of
    the import time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name, package)
    finally:
        if was_enabled:
            gc.enable()


def lazy_names(
    package: str, sources: Mapping[str, str], former: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package.

    Args:
        sources: public name -> its module relative to the package, e.g. ".models".
        former: former name -> public name.
    """

    def __getattr__(name: str) -> Any:
        if name in former:
            warn_of_former_name(f"{package}.{name}", former[name])
            return getattr(sys.modules[package], former[name])
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        value = getattr(import_quickly(sources[name], package), name)
        setattr(sys.modules[package], name, value)  # the next access does not come here
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *sources})

    return __getattr__, __dir__
