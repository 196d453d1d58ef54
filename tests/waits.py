"""For which operations a process would wait for a GPU, counted without one."""

from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode


class _Waits(TorchDispatchMode):
    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "bincount", "lift_fresh")

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in self.NAMES:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def waits(run: Callable[[], object]) -> list[str]:
    """The operations of a function for which the host would wait on a GPU: those that look at values or upload some."""
    with _Waits() as mode:
        run()
    return mode.found
