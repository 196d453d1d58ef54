"""How a run begins on its devices and tells its trackers."""

import torch
from accelerate import Accelerator

from .config import LoopConfig


def accelerator_for(config: LoopConfig) -> Accelerator:
    """An Accelerator with a run's settings."""
    return Accelerator(
        # Asked for, or else Accelerate takes each of several ranks without a GPU for a job of its own.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=list(config.report_to) or None,
        project_dir=config.output_dir,
    )


def start_trackers(accelerator: Accelerator, config: LoopConfig, step: int) -> None:
    """Begin to log, after `step`; what TensorBoard has of later steps, from before an interruption, no longer shows."""
    settings = {"tensorboard": {"purge_step": step + 1}} if "tensorboard" in config.report_to else {}
    accelerator.init_trackers("logs", init_kwargs=settings)


def require_settings(**values: str | None) -> None:
    """Raise a ValueError for the first setting without a value; "__" in a name stands for a dot."""
    for name, value in values.items():
        if not value:
            key = name.replace("__", ".")
            raise ValueError(f"{key} is not set; add --{key} ...")
