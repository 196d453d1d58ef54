"""How a saved tokenizer is run over data: on which device, in which precision, compiled or not."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vpvae_hf.models.tokenizer import Tokenizer
from vpvae_hf.settings import DTYPES, require
from vpvae_hf.tensors import float32_products


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a saved tokenizer is run; commands and `BatchTokenizer` share it.

    Args:
        dtype: what encoder and decoder compute in, by autocast if it is not "float32". The projections next to the
            quantizer and the quantizer itself always compute in float32. TF32 is used as torch is set.
        compile: compile encoder and decoder. If a batch has another size, they are compiled once more, for all sizes.
        device: e.g. "cpu", "cuda" or "cuda:1"; None for a GPU if there is one, otherwise the CPU.
        exact: make codes depend on the device as little as possible: float32 without TF32, deterministic kernels.

    Raises:
        ValueError: the dtype is unknown, or settings contradict `exact`.
    """

    dtype: str = "float32"
    compile: bool = False
    device: str | None = None
    exact: bool = False

    def __post_init__(self):
        require(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        if self.exact and (self.compile or self.dtype != "float32"):
            other = "compile" if self.compile else f"dtype {self.dtype}"
            raise ValueError(f"exact codes are computed in float32 and not compiled; leave out exact or {other}")

    def find_device(self) -> torch.device:
        """The device; a ValueError if this machine has no such device."""
        if self.device is None:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        counts = {"cpu": 1, "cuda": torch.cuda.device_count()}
        if (accelerator := torch.accelerator.current_accelerator()) is not None:  # such as MPS or XPU
            counts[accelerator.type] = torch.accelerator.device_count()
        try:
            device = torch.device(self.device)
            known = (device.index or 0) < counts.get(device.type, 0)
        except RuntimeError:  # no name of a device
            known = False
        if not known:
            there = [
                kind if count == 1 else f"{kind}:0 to {kind}:{count - 1}" for kind, count in counts.items() if count
            ]
            raise ValueError(f"torch finds no device {self.device!r} here; there is {', '.join(there)}")
        return device

    def prepare(self, model: Tokenizer) -> Tokenizer:
        """The model in eval mode on the device; its encoder and decoder compute as the settings say from now on."""
        model = model.eval().to(self.find_device())
        if self.dtype != "float32":
            beside_quantizer = ("quantize", *model._projections)
            for name, part in model.named_children():
                if name not in beside_quantizer:
                    part.forward = _in_autocast(part.forward, model.device.type, getattr(torch, self.dtype))
        if self.compile:
            model.encoder.compile()
            model.decoder.compile()
        return model

    @contextmanager
    def running(self) -> Iterator[None]:
        """A context for all that the model computes, in which torch's switches are set as `exact` needs them."""
        if not self.exact:
            yield
            return
        deterministic = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS needs to be deterministic
        cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        torch.use_deterministic_algorithms(True)
        try:
            with float32_products("highest"), cudnn:
                yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)

    def record(self) -> dict[str, Any]:
        """What codes and metrics depend on in addition to model and data, for JSON; call it within `running`.

        "tf32" is whether products or convolutions of float32 may be rounded to TF32, which only CUDA GPUs do.
        """
        device = self.find_device()
        rounds = torch.backends.cudnn.allow_tf32 or torch.get_float32_matmul_precision() != "highest"
        return {
            "dtype": self.dtype,
            "tf32": device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8 and rounds,
            "compiled": self.compile,
            "exact": self.exact,
            "device_type": device.type,
            "torch": torch.__version__,
        }


def _in_autocast(forward: Callable[..., Tensor], device_type: str, dtype: torch.dtype) -> Callable[..., Tensor]:
    @functools.wraps(forward)
    def run(*args, **settings) -> Tensor:
        with torch.autocast(device_type, dtype):
            return forward(*args, **settings).float()

    return run
