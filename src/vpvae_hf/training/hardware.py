"""How a run uses a CUDA GPU by default. On other devices the defaults of torch and accelerate apply."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import parse_flag_from_env

from vpvae_hf.modalities.config import RunConfig, TrainingConfig
from vpvae_hf.tensors import float32_products

# The oldest GPUs that triton compiles for.
_TRITON_CAPABILITY = (7, 0)


@dataclass(frozen=True)
class Hardware:
    """What this process trains on.

    Attributes:
        device: the type of its device.
        bf16: whether the device computes in bfloat16 without emulation.
        triton: whether torch can compile for the device.
    """

    device: str
    bf16: bool = False
    triton: bool = False


def find_hardware() -> Hardware:
    """The hardware that accelerate will choose."""
    if not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return Hardware("cpu")
    device = torch.accelerator.current_accelerator().type
    if device != "cuda":
        return Hardware(device)
    has_triton = importlib.util.find_spec("triton") is not None
    return Hardware(
        device,
        bf16=torch.cuda.is_bf16_supported(including_emulation=False),
        triton=has_triton and torch.cuda.get_device_capability() >= _TRITON_CAPABILITY,
    )


def mixed_precision(config: RunConfig, hardware: Hardware, environment: Mapping[str, str] = os.environ) -> str | None:
    """The precision to ask accelerate for; None leaves it to accelerate."""
    if config.mixed_precision is not None or is_initialized():
        return config.mixed_precision
    # `accelerate launch` also sets "no" if nothing is configured.
    configured = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    return "bf16" if hardware.bf16 and configured == "no" else None


def compiles(config: TrainingConfig, hardware: Hardware) -> bool:
    """Whether encoder and decoder are to be compiled."""
    return hardware.triton if config.torch_compile is None else config.torch_compile


def fuses_adamw(accelerator: Accelerator) -> bool:
    """Whether AdamW is fused into one kernel: not in fp16, since it would hide the steps that the scaler skips."""
    return accelerator.device.type == "cuda" and accelerator.mixed_precision != "fp16"


def describe(accelerator: Accelerator, *, compiled: bool = False) -> str:
    """One line that states device, precision and optimizations."""
    precision = accelerator.mixed_precision
    used = ["float32" if precision == "no" else f"mixed precision {precision}"]
    used += ["encoder and decoder compiled"] if compiled else []
    used += ["fused AdamW"] if fuses_adamw(accelerator) else []
    used += ["TF32", "cuDNN's fastest convolutions"] if accelerator.device.type == "cuda" else []
    return f"{accelerator.device.type}: {', '.join(used)}"


@contextmanager
def tuned(device: torch.device, *, survive_compiler: bool = False) -> Iterator[None]:
    """A context in which CUDA searches for the fastest convolutions and multiplies float32 matrices in TF32.

    Args:
        survive_compiler: if compiling a module fails, continue without it and log why.
    """
    with contextlib.ExitStack() as stack:
        if survive_compiler:
            stack.enter_context(torch._dynamo.config.patch(suppress_errors=True))
        if device.type == "cuda":
            stack.enter_context(_benchmark(True))
            stack.enter_context(float32_products("high"))
        yield


@contextmanager
def untuned() -> Iterator[None]:
    """A context without compilation and the search for fast convolutions, which would start again for each shape."""
    with torch.compiler.set_stance("force_eager"), _benchmark(False):
        yield


@contextmanager
def _benchmark(value: bool) -> Iterator[None]:
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, value
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
