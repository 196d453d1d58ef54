"""A simulated CUDA device, to count the work that a program would give it: import this module before torch.

`onto(module)` and `.to(DEVICE)` return tensors that claim to lie on "cuda:0", but whose values are computed on the CPU.
So the package takes the same paths as on a GPU, autograd included. Each operation on them passes through `Counter`,
which records launches, copies, synchronizations and collectives, with the line of the package that caused them.

A synchronization is what `torch.cuda.set_sync_debug_mode("warn")` warns of, according to torch's CUDA sources:

- a value that is read (`_local_scalar_dense`: item, bool, float, int; `equal`),
- a result whose size depends on values (nonzero, masked_select, unique, bincount, indexing by a mask, repeat_interleave
  without its output_size); bincount reads twice, the least and the greatest value,
- a copy between main memory and the device, unless it is non-blocking and the main memory is pinned. `torch.tensor` and
  `new_tensor` with a device make such copies, and so do indices in main memory,
- `torch.multinomial`, which reads its weights, and calls that wait (`synchronize` of torch.cuda, an event or a stream).

A non-blocking copy from pageable memory is counted as a copy ("staged"): the host waits for the staging, not for the
device. A kernel of triton is counted as a launch and is not run; its outputs are filled with possible values.
"""

import collections
import contextlib
import ctypes
import importlib.util
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

if "torch" in sys.modules:
    raise ImportError("import device before torch, which looks for devices only once")

_TORCH = Path(importlib.util.find_spec("torch").origin).parent


def _load() -> None:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "device.so")
        source = Path(__file__).with_suffix(".cpp")
        command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{_TORCH / 'include'}", str(source)]
        subprocess.run([*command, "-o", str(library), f"-L{_TORCH / 'lib'}", "-lc10", "-ltorch_cpu"], check=True)
        for file in (_TORCH / "lib/libc10.so", _TORCH / "lib/libtorch_cpu.so", library):
            ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL)


_load()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils._mode_utils import no_dispatch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

DEVICE = torch.device("cuda", 0)

_aten = torch.ops.aten
# Operations that wait for the device, and how often.
_LOOKS = {
    _aten._local_scalar_dense: 1,
    _aten.equal: 1,
    _aten.nonzero: 1,
    _aten.masked_select: 1,
    _aten._unique2: 1,
    _aten.unique_dim: 1,
    _aten.unique_consecutive: 1,
    _aten.unique_dim_consecutive: 1,
    _aten.bincount: 2,
    _aten.multinomial: 1,
}
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
_COPIES = {_aten._to_copy, _aten.copy_, _aten._copy_from}
# These launch nothing; nor do views.
_FREE = {
    *(_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided),
    *(_aten._unsafe_view, _aten.lift_fresh, _aten.is_pinned, _aten._local_scalar_dense, _aten.is_same_size),
    *(_aten._has_compatible_shallow_copy_type, _aten.set_),
}
# Parts of a step, each with the files and folders of its code.
_PARTS = {
    "quantizer": ("vpvae_hf/quantizers/", "vpvae_hf/neighbors/", "vpvae_hf/codebook/"),
    "losses": ("vpvae_hf/losses/",),
    "optimizer": ("torch/optim/", "accelerate/optimizer.py", "nn/utils/clip_grad.py", "diffusers/training_utils.py"),
    "model": ("vpvae_hf/models/",),
}


class OnDevice(Tensor):
    """A tensor that claims to lie on the device; `here` holds its values."""

    @staticmethod
    def __new__(cls, here: Tensor):
        like = {"dtype": here.dtype, "layout": here.layout, "device": DEVICE}
        made = Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), **like
        )
        made.here = here
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl
    # Not torch's alias, which would lose the values; nothing here writes to it.
    data = property(lambda self: self.detach(), lambda self, other: self.here.copy_(other.here))

    def tolist(self):
        return self.cpu().tolist()

    def data_ptr(self):
        return self.here.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), settings=None):
        with _Mode():
            return operation(*arguments, **(settings or {}))


class Counter:
    """What the device had to do since `counted` began, in order.

    Attributes:
        events: dictionaries with "kind" ("launch", "sync", "to_device", "to_host" or "collective"), "part" (quantizer,
            losses, optimizer, model, backward or rest), "operation", "where" (file:line in the package), and for
            copies and collectives "bytes", "pinned" and "blocking".
    """

    def __init__(self):
        self.events: list[dict] = []
        self.counting = False

    def add(self, kind: str, operation: object, count: int = 1, **more) -> None:
        if self.counting:
            part, where = _place()
            event = {"kind": kind, "operation": str(operation), "part": part, "where": where, **more}
            self.events.extend([event] * count)

    def take(self) -> list[dict]:
        events, self.events = self.events, []
        return events

    @contextlib.contextmanager
    def counted(self):
        self.events, self.counting = [], True
        try:
            yield self.events
        finally:
            self.counting = False


counter = Counter()


def _place() -> tuple[str, str]:
    """The part of a step that runs now, and the innermost line of the package."""
    frame, where, part = sys._getframe(2), "", "rest"
    if threading.current_thread() is not threading.main_thread():
        part = "backward"
    while frame is not None:
        file = frame.f_code.co_filename
        if not where and "/vpvae_hf/" in file:
            where = f"{file.split('/vpvae_hf/')[-1]}:{frame.f_lineno}"
        if part == "rest":
            found = [name for name, folders in _PARTS.items() if any(folder in file for folder in folders)]
            part = found[0] if found else part
        if frame.f_code.co_name == "_engine_run_backward":
            part = "backward"
        frame = frame.f_back
    return part, where or "(autograd)" if part == "backward" else where


class _Mode(TorchDispatchMode):
    """Runs operations on the CPU, and records in the counter what they would be on the device."""

    def __torch_dispatch__(self, operation, types, arguments=(), settings=None):
        settings = dict(settings or {})
        packet = getattr(operation, "overloadpacket", operation)
        given = tree_leaves((arguments, settings))
        inputs = [each for each in given if isinstance(each, OnDevice)]
        there = bool(inputs)
        asked = settings.get("device")
        if asked is not None:
            there = torch.device(asked).type == DEVICE.type
            settings["device"] = torch.device("cpu")
        originals = {id(each.here): each for each in inputs}
        if inputs or there:
            _note(operation, packet, arguments, settings, there, inputs)
        if inputs and packet not in _COPIES | _INDEXING:
            _refuse_strangers(operation, given)
        if packet is _aten._to_copy:
            settings.pop("pin_memory", None)
            if not there and inputs and settings.get("non_blocking"):
                made = operation(*tree_map(_here, arguments), **tree_map(_here, settings))
                return made.pin_memory()  # as torch does
        made = operation(*tree_map(_here, arguments), **tree_map(_here, settings))
        if inputs and torch.Tag.inplace_view in operation.tags:
            with no_dispatch():  # change its shape too
                operation(*arguments, **settings)
        if not there and packet is not _aten.copy_:
            return made

        def wrapped(value):
            if not isinstance(value, Tensor) or isinstance(value, OnDevice):
                return value
            if id(value) in originals:
                return originals[id(value)]
            return value if any(value is each for each in given) else OnDevice(value)

        return tree_map(wrapped, made)


def _here(value):
    return value.here if isinstance(value, OnDevice) else value


def _refuse_strangers(operation, given: list) -> None:
    """Raise an error as CUDA does: of tensors in main memory it takes only single values."""
    if any(isinstance(each, Tensor) and not isinstance(each, OnDevice) and each.ndim for each in given):
        raise RuntimeError(f"{operation} got tensors on {DEVICE} and in main memory")


def _note(operation, packet, arguments, settings, there: bool, inputs: list) -> None:
    name = operation.name().removeprefix("aten::") if hasattr(operation, "name") else str(operation)
    if getattr(operation, "namespace", "") == "c10d":
        tensors = [each for each in tree_leaves(arguments) if isinstance(each, Tensor)]
        counter.add("collective", name, bytes=sum(each.nbytes for each in tensors[-1:]), on_device=bool(inputs))
        return
    if packet in _COPIES and _crosses(packet, arguments, there, inputs):
        _note_copy(packet, name, arguments, settings, there)
        return
    if packet in _LOOKS:
        counter.add("sync", name, _LOOKS[packet])
    if packet is _aten.repeat_interleave and settings.get("output_size") is None:
        counter.add("sync", name)
    if packet in _INDEXING:
        _note_indices(name, arguments)
    if packet not in _FREE and not _is_view(operation):
        counter.add("launch", name)


def _crosses(packet, arguments, there: bool, inputs: list) -> bool:
    """Whether a copy goes between main memory and the device."""
    if packet is _aten._to_copy:
        return isinstance(arguments[0], OnDevice) != there
    return isinstance(arguments[0], OnDevice) != isinstance(arguments[1], OnDevice)


def _note_copy(packet, name: str, arguments, settings, there: bool) -> None:
    if packet is _aten._to_copy:
        to_device, host, asked = there, arguments[0], settings.get("non_blocking", False)
        pinned = host.is_pinned() if to_device else asked  # a non-blocking copy to main memory gets pinned memory
        size = host.numel() * (settings.get("dtype") or host.dtype).itemsize if not to_device else host.nbytes
    else:
        to_device = isinstance(arguments[0], OnDevice)
        host = arguments[1] if to_device else arguments[0]
        asked = arguments[2] if len(arguments) > 2 else settings.get("non_blocking", False)
        pinned, size = host.is_pinned(), host.nbytes
    blocking = not asked or (not to_device and not pinned)
    kind = "to_device" if to_device else "to_host"
    counter.add(kind, name, bytes=size, pinned=bool(pinned), blocking=blocking)
    if blocking:
        counter.add("sync", f"{name} ({kind})")


def _note_indices(name: str, arguments) -> None:
    masks = 0
    for index in arguments[1]:
        if index is None:
            continue
        masks += index.dtype in (torch.bool, torch.uint8)
        if not isinstance(index, OnDevice):
            counter.add("to_device", f"{name} (index)", bytes=index.nbytes, pinned=False, blocking=True)
            counter.add("sync", f"{name} (index)")
    # A single value under one mask is filled in without looking for places.
    filled = name.startswith(("index_put", "_index_put")) and arguments[2].numel() == 1
    if masks and not filled:
        counter.add("sync", f"{name} (mask)", masks)


def _is_view(operation) -> bool:
    returns = getattr(operation, "_schema", None)
    returns = returns.returns if returns is not None else []
    return any(each.alias_info is not None and not each.alias_info.is_write for each in returns)


def onto(module: nn.Module) -> nn.Module:
    """The module on the device, with new parameters, which no optimizer may hold yet."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return module.to(DEVICE)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def _launch(self, *arguments, grid, warmup=False, **settings):
    """Replaces the launch of a triton kernel."""
    counter.add("launch", f"triton {self.fn.__name__}")
    named = {**dict(zip(self.arg_names, arguments, strict=False)), **settings}
    named = {name: _here(value) for name, value in named.items()}
    if "squares" not in named:
        raise NotImplementedError(f"the kernel {self.fn.__name__}{tuple(self.arg_names)} is unknown; add its outputs")
    squares = torch.cdist(named["queries"], named["points"].T).square()
    if "indices" in named:
        least, parts = squares.min(dim=1), [1] * (named["squares"].ndim - 1)
        named["squares"].copy_(least.values.view(-1, *parts).expand_as(named["squares"]))
        named["indices"].copy_(least.indices.view(-1, *parts).expand_as(named["indices"]))
    else:  # the nearest ones, not those of the ranks: finite, ascending distances
        named["squares"].copy_(squares.topk(named["squares"].shape[1], largest=False).values)


class _Waiting:
    """A stream or an event; a host that waits for it is counted."""

    def __init__(self, *_, **__):
        pass

    def synchronize(self):
        counter.add("sync", f"{type(self).__name__}.synchronize")

    def query(self):
        return True

    def record(self, *_):
        return self

    def record_event(self, *_):
        return _Waiting()

    wait = wait_event = wait_stream = __exit__ = lambda self, *_: None

    def __enter__(self):
        return self


def enter() -> _Mode:
    """Simulate the device from now on, in this thread and those that autograd starts for it."""
    torch.cuda._lazy_init = lambda: None
    torch.cuda.current_device = lambda: 0
    torch.cuda.set_device = torch.cuda._exchange_device = torch.cuda._maybe_exchange_device = lambda device: 0
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(multi_processor_count=132, major=9, minor=0)
    torch.cuda.synchronize = lambda device=None: counter.add("sync", "torch.cuda.synchronize")
    torch.cuda.current_stream = torch.cuda.Event = torch.cuda.Stream = _Waiting
    torch.cuda.stream = lambda stream: contextlib.nullcontext()
    Tensor.record_stream = lambda self, stream: None
    from torch.optim import optimizer
    from torch.utils import _foreach_utils
    from triton.runtime.jit import JITFunction

    for types in (optimizer._foreach_supported_types, _foreach_utils._foreach_supported_types):
        types.append(OnDevice)

    JITFunction.run = _launch
    torch._C._set_only_lift_cpu_tensors(True)
    mode = _Mode()
    mode.__enter__()
    return mode


def summary(events: list[dict]) -> dict:
    """Counts by kind; launches also by part, synchronizations also by line."""
    kinds = collections.Counter(event["kind"] for event in events)
    parts = collections.Counter(event["part"] for event in events if event["kind"] == "launch")
    copies = [event for event in events if event["kind"] == "to_device"]
    collectives = [event for event in events if event["kind"] == "collective"]
    lines = collections.Counter(f"{e['where']} {e['operation']}" for e in events if e["kind"] == "sync")
    return {
        "syncs": kinds["sync"],
        "launches": dict(parts),
        "to_device": {
            "copies": len(copies),
            "bytes": sum(event["bytes"] for event in copies),
            "largest": max((event["bytes"] for event in copies), default=0),
            "blocking": sum(event["blocking"] for event in copies),
        },
        "to_host": kinds["to_host"],
        "collectives": {"calls": len(collectives), "bytes": sum(event["bytes"] for event in collectives)},
        "lines": dict(sorted(lines.items())),
    }
