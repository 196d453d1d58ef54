"""Exchange between the ranks of a distributed job. A single process is a job of one rank.

The job may be initialized after this module is imported. Every rank must make the same calls in the same order;
results lie on the device of the tensor that was given. If NCCL is the only backend, each rank must have chosen its GPU.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

T = TypeVar("T")

_log = logging.getLogger(__name__)

# After this many seconds a rank logs what it waits for; measuring or writing a checkpoint may take as long.
_LONG_WAIT_S = 30.0
_wait: tuple[float, str] | None = None  # since when this rank has been in a block that all ranks must run, and which

_TOGETHER = "together"
# How long a rank waits for the others to make a call, and how long it waits before it logs that.
_WAIT, _SILENT_WAIT = timedelta(seconds=60), timedelta(seconds=5)


def rank() -> int:
    """This process' number, from 0."""
    return dist.get_rank() if _initialized() else 0


def world_size() -> int:
    """How many processes the job has."""
    return dist.get_world_size() if _initialized() else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's tensor of one shape, on every rank."""
    return _reduced(tensor, dist.ReduceOp.SUM)


def max_over_ranks(tensor: Tensor) -> Tensor:
    """The elementwise maximum of every rank's tensor of one shape, on every rank."""
    return _reduced(tensor, dist.ReduceOp.MAX)


def rows_of_all_ranks(rows: Tensor) -> Tensor:
    """Every rank's rows [n, ...], one rank after the other, on every rank; of their shapes, only n may differ."""
    if world_size() == 1:
        return rows
    counts = torch.zeros(world_size(), device="cpu", dtype=torch.long)
    counts[rank()] = len(rows)
    counts = sum_over_ranks(counts)
    sent = _sendable(rows.new_zeros(int(counts.max()), *rows.shape[1:]))
    sent[: len(rows)] = rows
    received = [torch.empty_like(sent) for _ in counts]
    dist.all_gather(received, sent)
    return torch.cat([part[:count] for part, count in zip(received, counts.tolist(), strict=True)]).to(rows.device)


def gather_rows(rows: Tensor, room: int, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Every rank's first `room` rows and its numbers, on every rank, by one collective that the host need not wait for.

    Args:
        rows: [n, d]; n may differ between ranks. If n is less than `room`, zeros are added.
        room: the same on every rank.
        numbers: [k] of a dtype whose width is that of the rows' dtype, or a multiple of it.

    Returns:
        Rows [W, room, d] and numbers [W, k] of W ranks.
    """
    padded = pad(rows[:room], (0, 0, 0, max(0, room - len(rows))))
    sent = _sendable(torch.cat([padded.flatten(), numbers.view(rows.dtype)]))
    received = [torch.empty_like(sent) for _ in range(world_size())]
    dist.all_gather(received, sent)
    parts, tails = torch.stack(received).to(rows.device).tensor_split([padded.numel()], dim=1)
    return parts.unflatten(1, padded.shape), tails.contiguous().view(numbers.dtype)


def from_first_rank(tensor: Tensor, *, same_shape: bool = False) -> Tensor:
    """The first rank's rows [n, ...], on every rank; only n may differ between ranks, and not with `same_shape`.

    With `same_shape` this is one collective, which the host need not wait for.
    """
    if world_size() == 1:
        return tensor
    shape = tensor.shape
    if not same_shape:
        count = _sendable(torch.tensor(len(tensor), device="cpu"))
        dist.broadcast(count, src=0)
        shape = (int(count), *shape[1:])
    sent = _sendable(tensor.clone() if rank() == 0 else tensor.new_empty(shape))
    dist.broadcast(sent, src=0)
    return sent.to(tensor.device)


def objects_of_all_ranks(value: T) -> list[T]:
    """Every rank's value, in the order of ranks, on every rank; it travels pickled, so it should be small."""
    if world_size() == 1:
        return [value]
    received = [value] * world_size()
    dist.all_gather_object(received, value)
    return received


def all_ranks_call(function: str) -> bool:
    """Whether every rank of the job makes this call. False if this rank makes it alone, and in a job of one rank.

    It waits a minute for the others, by means of the job's store, so that a rank that makes the call alone does not
    wait for ever.

    Raises:
        RuntimeError: another rank has made this or an earlier call alone, so this rank would get another result.
    """
    if world_size() == 1:
        return False
    store = dist.PrefixStore(f"vpvae_hf/{function}", dist.distributed_c10d._get_default_store())
    call = store.add("calls", 0)
    decided, ranks = f"{call}/decided", store.add(f"{call}/arrived", 1)
    if ranks == world_size():
        store.add("calls", 1)
        store.compare_set(decided, "", _TOGETHER)
    else:
        try:
            store.wait([decided], min(_WAIT, _SILENT_WAIT))
        except RuntimeError:  # nobody came
            _log.warning("rank %d waits %g s for all ranks to call %s", rank(), _WAIT.total_seconds(), function)
            with contextlib.suppress(RuntimeError):
                store.wait([decided], _WAIT)
        if store.compare_set(decided, "", str(rank())).decode() == str(rank()):
            store.add("calls", 1)
    who = store.get(decided).decode()
    if who == _TOGETHER:
        return True
    first = store.compare_set("alone", "", who).decode()
    if first != str(rank()):
        raise RuntimeError(
            f"rank {first} has called {function} alone, since the others did not come within "
            f"{_WAIT.total_seconds():g} s; rank {rank()} would get another result. Call it on every rank at the same "
            "point, or with across_ranks=False on one"
        )
    return False


@contextlib.contextmanager
def run_by_all_ranks(what: str) -> Iterator[None]:
    """A context for calls that every rank must make. If this rank waits long for the others, it logs what it waits for.

    The context costs a few microseconds: a thread checks from time to time.

    Args:
        what: the end of the logged message: what every rank must run, and what to do if only this rank runs it.
    """
    global _wait
    if world_size() == 1:
        yield
        return
    _start_watch()
    _wait = (time.monotonic(), what)
    try:
        yield
    finally:
        _wait = None


@cache
def _start_watch() -> None:
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    told = None
    while True:
        time.sleep(_LONG_WAIT_S / 10)
        wait = _wait
        if wait not in (None, told) and time.monotonic() - wait[0] > _LONG_WAIT_S:
            _log.warning("rank %d has waited for other ranks for %g s: %s", rank(), _LONG_WAIT_S, wait[1])
            told = wait


@contextlib.contextmanager
def failing_together(active: bool = True) -> Iterator[None]:
    """A context that raises on every rank if it raises on any, since the others would wait for ever.

    Args:
        active: whether the ranks take part; if not, the block runs as if alone.
    """
    problem = None
    try:
        yield
    except Exception as error:
        problem = error
    failed = active and bool(sum_over_ranks(torch.tensor(problem is not None, device="cpu", dtype=torch.long)))
    if problem is not None:
        raise problem
    if failed:
        raise RuntimeError("another rank failed, so this one stops too; see the other's error")


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _reduced(tensor: Tensor, operation: dist.ReduceOp) -> Tensor:
    if world_size() == 1:
        return tensor
    sent = _sendable(tensor.clone())
    dist.all_reduce(sent, op=operation)
    return sent.to(tensor.device)


def _sendable(tensor: Tensor) -> Tensor:
    # An accelerator's backend, such as NCCL, sends nothing that lies in main memory; a job may have another backend for
    # that.
    if tensor.device.type != "cpu" or "cpu:" in dist.get_backend_config():
        return tensor
    return tensor.to(torch.accelerator.current_accelerator())
