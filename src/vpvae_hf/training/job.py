"""How a run begins: what it must be told, its devices and its trackers."""

from operator import attrgetter

import torch
from accelerate import Accelerator

from .config import LoopConfig, RunConfig


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


def require_settings(config: RunConfig, *keys: str) -> None:
    """Raise a ValueError for the first of some settings, named as on the command line, that has no value."""
    for key in keys:
        if not attrgetter(key)(config):
            raise ValueError(f"{key} is not set; add --{key} ...")
