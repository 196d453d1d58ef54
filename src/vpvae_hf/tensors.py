"""Turns what callers give into tensors: numpy arrays, what numpy can convert, and lists of these.

It also has what all code with tensors needs: checks of values, graphs, inference mode, and copies to and from a GPU.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from itertools import chain
from numbers import Number
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

# For signals in [-1, 1]: random noise stays far below this, pixels in 0..255 and samples of 16 bits do not.
LARGEST_SIGNAL = 10
# A message names at most this many keys or shapes.
_NAMED = 5
T = TypeVar("T")


def as_tensor(values: Any, what: str, device: torch.device | None = None) -> Tensor:
    """Return a tensor as it is; turn an array, a number or (nested) lists of these and of tensors into a tensor.

    The dtype stays.

    Args:
        values: arrays may be read-only, and have any strides and byte order.
        what: what messages call the values, e.g. "images".
        device: where the tensor goes if `values` was not a tensor; None for the CPU.

    Raises:
        TypeError: something else, such as a mapping, a path or an array of strings.
        ValueError: a list of tensors or arrays that differ in shape.
    """
    if isinstance(values, Tensor):
        return values
    tensor = _stacked(values, what) if _is_sequence(values) else _from_array(values, what)
    return tensor if device is None else tensor.to(device)


def as_real(values: Any, what: str, device: torch.device | None = None) -> Tensor:
    """As `as_tensor`, for integers and floating point; raise a TypeError for booleans and complex numbers."""
    tensor = as_tensor(values, what, device)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{what} must be real numbers, got {tensor.dtype}")
    return tensor


def as_floating(
    values: Any, what: str, device: torch.device | None = None, remedy: str = "scale them to [-1, 1]"
) -> Tensor:
    """As `as_tensor`, for floating point; raise a TypeError with the remedy for another kind of dtype."""
    tensor = as_tensor(values, what, device)
    if not tensor.is_floating_point():
        raise TypeError(f"{what} must be floating point, got {tensor.dtype}; {remedy}")
    return tensor


def as_codes(codes: Any, device: torch.device | None = None) -> Tensor:
    """As `as_tensor`, but turn any integers into int64; raise a TypeError for another kind of dtype."""
    codes = as_tensor(codes, "codes", device)
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"codes must be integers, got {codes.dtype}; use encode() to get codes from latents")
    return codes.long()  # files hold narrow types, which lack some numbers and operations


def device_for(module: nn.Module, values: Any) -> torch.device | None:
    """The device for `values`: the module's for arrays, which have none; None for a tensor or without weights."""
    weights = None if isinstance(values, Tensor) else next(chain(module.parameters(), module.buffers()), None)
    return None if weights is None else weights.device


class _Check(NamedTuple):
    bounds: Tensor
    count: int
    what: str
    remedy: str
    scaling: str | None

    def problem(self, low: float, high: float, bad: int | str) -> str | None:
        """The problem of values with these bounds, which are both NaN if any value is; None if there is no problem."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return f"{bad} of {self.count} {self.what} are NaN or infinite{self.remedy}"
        if self.scaling is not None and max(-low, high) > LARGEST_SIGNAL:
            return (
                f"{self.what} reach from {low:.4g} to {high:.4g}, beyond the limit of {LARGEST_SIGNAL}{self.remedy}; "
                f"{self.scaling}"
            )
        return None


class DeferredChecks:
    """Checks that `deferred_checks` postponed: their values lie on a device and have not been read yet."""

    def __init__(self):
        self._checks: list[_Check] = []

    @property
    def bounds(self) -> list[Tensor]:
        """For each check a tensor [2] float32, the least and the greatest value; both NaN if any value is."""
        return [check.bounds.float() for check in self._checks]

    def raise_failed(self, where: str = "", bounds: Sequence[Sequence[float]] | None = None) -> None:
        """Raise the ValueError of the first check that failed, in the order in which they were made.

        All checks are then forgotten, so a block may be as long as a run.

        Args:
            where: what the message begins with, e.g. "step 12: ".
            bounds: `self.bounds` as numbers, if they were fetched along with others; by default they are fetched here,
                which waits for the device once.
        """
        if bounds is None:
            bounds = torch.stack(self.bounds).tolist() if self._checks else []
        checks, self._checks = self._checks, []
        for check, (low, high) in zip(checks, bounds, strict=True):
            problem = check.problem(low, high, "some")
            if problem is not None:
                raise ValueError(where + problem)


_deferred: ContextVar[DeferredChecks | None] = ContextVar("deferred checks of values", default=None)


@contextlib.contextmanager
def deferred_checks() -> Iterator[DeferredChecks]:
    """A context in which models do not read values, which would wait for the device, but record what to check later.

    So a training step needs no synchronization. NaN and infinite values, and signals far beyond [-1, 1], raise no error
    until you call `raise_failed` of what the context yields. Other checks, such as those of shapes and codes, stay.

    ```python
    with deferred_checks() as checks:
        output = model(images)
    ...  # losses, backward pass, optimizer; and after some steps, but before the weights are saved:
    checks.raise_failed()
    ```
    """
    token = _deferred.set(DeferredChecks())
    try:
        yield _deferred.get()
    finally:
        _deferred.reset(token)


def require_finite(values: Tensor, what: str, remedy: str = "", scaling: str | None = None) -> None:
    """Raise a ValueError if values are empty, NaN or infinite; with `scaling`, also if they are far beyond [-1, 1].

    Values are not looked at while a graph is made, and within `deferred_checks` only later.

    Args:
        what: what messages call the values.
        remedy: text after the part of the message that says what is wrong.
        scaling: for signals in [-1, 1]: the end of the message, which says how to scale others.
    """
    if is_tracing():
        return
    require_nonempty(values, what)
    values, deferred = values.detach(), _deferred.get()
    check = _Check(torch.stack(torch.aminmax(values)), values.numel(), what, remedy, scaling)
    if deferred is not None:
        deferred._checks.append(check)
        return
    low, high = check.bounds.tolist()
    if check.problem(low, high, "") is not None:
        raise ValueError(check.problem(low, high, int((~torch.isfinite(values)).sum())))


def require_nonempty(values: Tensor, what: str) -> None:
    """Raise a ValueError if a batch has no items, or items without content."""
    if 0 in values.shape:
        raise ValueError(f"the batch is empty: {what} of shape {tuple(values.shape)}; leave it out")


def without_bad_values(values: Tensor) -> Tensor:
    """The values, with zeros in place of NaN and infinite ones, which a deferred check will report."""
    return values.nan_to_num(0.0, 0.0, 0.0) if _deferred.get() is not None else values


def constant(numbers: tuple[float, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    """A tensor of numbers on another's device; it is made once per device, since making one waits for a GPU.

    It must not be written to.
    """
    if is_tracing() or hasattr(like, "fake_mode"):  # tensors made in a graph or from fake tensors cannot be used later
        return torch.tensor(numbers, dtype=dtype, device=like.device)
    return _constant(numbers, dtype, like.device)


def precise_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device without float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """A context in which torch multiplies float32 matrices in "highest" precision, or in "high": TF32 on CUDA."""
    products = torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)
    newer = [(each, each.fp32_precision) for each in products if hasattr(each, "fp32_precision")]  # since torch 2.9
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # only the newer switches were set, and the older one contradicts them
        before = "highest"
    torch.set_float32_matmul_precision(precision)  # sets both, so that none contradicts
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for each, value in newer:
            each.fp32_precision = value


def is_tracing() -> bool:
    """Whether torch is making a graph (compile, export or jit.trace), in which tensors have no values to look at."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@contextlib.contextmanager
def kept_for_training() -> Iterator[None]:
    """A context, or a decorator of a function, whose tensors outlive it, without gradients.

    Autograd takes no tensors that were made within torch.inference_mode, so this context leaves that mode.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


@cache
@kept_for_training()
def _constant(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=dtype, device=device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a CPU tensor on a device; a copy to a CUDA device is asynchronous."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def fetched_late(issued: Iterable[tuple[Sequence[Tensor], T]]) -> Iterator[tuple[list[Tensor], T]]:
    """Results of a device, moved to the CPU, with what belongs to them.

    Each is waited for only after the next one has been issued, so that a GPU has work while the CPU uses the results.
    """
    waiting: tuple[list[Tensor], torch.cuda.Event | None, T] | None = None
    for results, belonging in issued:
        device = results[0].device
        event = torch.cuda.Event() if device.type == "cuda" else None
        # Enqueued before the next batch: later it would wait for that one, too.
        copies = [result.to("cpu", non_blocking=event is not None) for result in results]
        if event is not None:
            event.record(torch.cuda.current_stream(device))  # the default is the current device's stream
        if waiting is not None:
            yield _fetched(*waiting)
        waiting = copies, event, belonging
    if waiting is not None:
        yield _fetched(*waiting)


def _fetched(copies: list[Tensor], event: torch.cuda.Event | None, belonging: T) -> tuple[list[Tensor], T]:
    if event is not None:
        event.synchronize()
    return copies, belonging


def shapes_of(tensors: Sequence[Tensor]) -> str:
    """The different shapes of some tensors, for a message."""
    shapes = list(dict.fromkeys(str(tuple(each.shape)) for each in tensors))
    return named(shapes)


def named(names: Sequence[Any]) -> str:
    """The first of some names, for a message."""
    more = ["..."] if len(names) > _NAMED else []
    return ", ".join([str(name)[:40] for name in names[:_NAMED]] + more)


def _is_sequence(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str | bytes)


def _stacked(values: Sequence, what: str) -> Tensor:
    if not len(values) or isinstance(values[0], Number):
        try:
            return _from_array(np.asarray(list(values)), what)
        except ValueError as error:
            raise ValueError(f"{what} must be lists of equal lengths, got numbers among lists") from error
    parts = [as_tensor(each, what) for each in values]
    if any(part.shape != parts[0].shape for part in parts):
        raise ValueError(
            f"{what} of one batch must have one shape, got {len(parts)} of shapes {shapes_of(parts)}; make them equal, "
            "as the model's preprocessor() does with signals, or give them one by one"
        )
    return torch.stack(parts)


def _from_array(values: Any, what: str) -> Tensor:
    if not isinstance(values, Number) and not hasattr(values, "__array__"):
        raise TypeError(f"{what} must be a tensor, an array or a list of these, got {_described(values)}")
    array = np.asarray(values)
    if array.dtype == object:  # such as the rows of a table
        return as_tensor(array.tolist(), what)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{what} must be numbers, got an array of dtype {array.dtype}")
    # torch takes no other byte order and no negative strides, and warns of arrays that must not be written to.
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def _described(values: Any) -> str:
    kind = type(values).__name__
    if isinstance(values, Mapping):
        return f"{kind}, which holds {named(list(values)) or 'nothing'}: give one of its values, or unpack it with **"
    return f"{kind}; open files and convert objects first"
