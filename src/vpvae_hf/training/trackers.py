"""Trackers of a run, such as TensorBoard, Weights & Biases or Trackio, through Accelerate."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker, get_available_trackers
from accelerate.utils import LoggerType

from vpvae_hf.modalities.config import RunConfig
from vpvae_hf.settings import require_name

PROJECT = "vpvae_hf"
_EVERY = "all"
_TENSORBOARD = "tensorboard"
_LOGS = "logs"  # TensorBoard's folder in the output folder


def installed_trackers(config: RunConfig) -> list[str]:
    """The trackers that a run reports to; for "all", those that are installed.

    Raises:
        ValueError: a tracker is unknown.
        ImportError: a tracker is not installed.
    """
    known, installed = [str(each) for each in LoggerType], [str(each) for each in get_available_trackers()]
    for name in config.report_to:
        require_name("report_to", name, known)
        if name not in (_EVERY, *installed):
            raise ImportError(
                f"report_to={name}: the tracker is not installed; pip install {name.replace('_', '-')}, or set "
                "--report_to none"
            )
    return sorted(installed) if _EVERY in config.report_to else list(config.report_to)


def start_trackers(accelerator: Accelerator, config: RunConfig, step: int) -> None:
    """Begin to log to the trackers after `step`, with the run's settings.

    TensorBoard writes to the folder "logs" of the output folder, and no longer shows earlier entries for later steps.
    Other trackers get a run that is named after the output folder, in the project "vpvae_hf" or the one of
    WANDB_PROJECT. If a run is resumed, Weights & Biases begins another run of that name, and Trackio continues the same
    one.
    """
    output = Path(config.output_dir).resolve()
    accelerator.log_with = [
        TensorBoardTracker(_LOGS, str(output), purge_step=step + 1) if str(each) == _TENSORBOARD else each
        for each in accelerator.log_with
    ]
    settings = {
        "wandb": {"name": output.name, "group": output.name, "dir": str(output)},
        "trackio": {"name": output.name, "resume": "allow" if step else "never"},
    }
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    accelerator.init_trackers(project, config=dict(_flat(asdict(config))), init_kwargs=settings)


def end_trackers(accelerator: Accelerator) -> None:
    """Have the trackers write the rest of their data, and print their closing messages."""
    while accelerator.trackers:
        accelerator.trackers.pop().finish()


def log_picture(accelerator: Accelerator, name: str, picture: np.ndarray, step: int) -> None:
    """Log a picture [H, W, 3] uint8 with all trackers that take pictures, in the form that each expects."""
    forms = {_TENSORBOARD: picture[None], "aim": picture, "clearml": picture}
    for tracker in accelerator.trackers:
        if tracker.name == "trackio":
            import trackio

            tracker.log({name: trackio.Image(picture)}, step=step)
        elif hasattr(tracker, "log_images"):
            how = {"dataformats": "NHWC"} if tracker.name == _TENSORBOARD else {}
            tracker.log_images({name: forms.get(tracker.name, [picture])}, step=step, **how)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of all groups as group.key; trackers take only numbers, words and None."""
    found = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            plain = value is None or isinstance(value, bool | int | float | str)
            found[prefix + name] = value if plain else json.dumps(value)
    return found
