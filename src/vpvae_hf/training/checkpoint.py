"""Checkpoints: a folder each, complete or not there."""

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from vpvae_hf import distributed

_log = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")
_STREAM = "stream_{}.pt"  # of each rank
OWN_MARKER = _STREAM.format(0)  # a file that every complete checkpoint of this package's loop has


def checkpoints(output: Path, marker: str = OWN_MARKER) -> list[Path]:
    """Complete checkpoints of a run, which hold a file of the name `marker`, the oldest first."""
    found = [
        folder for folder in output.glob("checkpoint-*") if _NAME.fullmatch(folder.name) and (folder / marker).is_file()
    ]
    return sorted(found, key=_step_of)


def _step_of(folder: Path) -> int:
    return int(_NAME.fullmatch(folder.name)[1])


def find_checkpoint(output: Path, which: str, marker: str = OWN_MARKER) -> Path | None:
    """The folder of "latest" (None where there is none yet), or of a path or of a name within the output.

    Raises:
        FileNotFoundError: no such folder, or one that is no checkpoint.
    """
    if which == "latest":
        return next(reversed(checkpoints(output, marker)), None)
    for folder in (Path(which), output / which):
        if folder.is_dir():
            if not _NAME.fullmatch(folder.name) or not (folder / marker).is_file():
                raise FileNotFoundError(
                    f"{folder} is no checkpoint of this trainer; those are folders checkpoint-STEP, and "
                    "--resume_from_checkpoint latest takes the newest. To go on from a saved model name it as the "
                    "start, with --model.pretrained of a tokenizer, --pretrained of a transformer"
                )
            return folder
    there = ", ".join(folder.name for folder in checkpoints(output, marker)) or "none"
    raise FileNotFoundError(f"no checkpoint {which}; {output} holds {there}")


def save_checkpoint(
    accelerator: Accelerator, output: Path, step: int, stream: dict[str, Any], limit: int | None
) -> None:
    """Write all that a run needs to go on, of all ranks; the newest `limit` checkpoints are kept.

    It is written aside and renamed when complete. Where writing fails, the ranks go on without it and say why.

    Args:
        stream: this rank's position in the data.
    """
    folder, aside = output / f"checkpoint-{step}", output / f".checkpoint-{step}.partial"
    try:
        with distributed.failing_together():
            if accelerator.is_main_process:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
        with distributed.failing_together():
            accelerator.save_state(str(aside))
            torch.save(stream, aside / _STREAM.format(accelerator.process_index))
    # Whatever is raised: libraries report a full disk in many ways, and a run is worth more than a checkpoint.
    except Exception as error:
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
            _log.error(
                "no checkpoint at step %d: %s. Training goes on; make room in %s before the next", step, error, output
            )
        return
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
        for old in checkpoints(output)[: 0 if limit is None else -limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, folder: Path) -> dict[str, Any] | None:
    """Restore what `save_checkpoint` wrote; gives this rank's position in the data, None where it was not saved.

    Raises:
        ValueError: the checkpoint belongs to another model or to other settings.
    """
    try:
        accelerator.load_state(str(folder))
    except (RuntimeError, ValueError, KeyError, IndexError, OSError) as error:
        raise ValueError(
            f"{folder} cannot be resumed with these settings: {error}; resume with those that the run was started with"
        ) from error
    stream = folder / _STREAM.format(accelerator.process_index)
    return torch.load(stream, weights_only=False) if stream.is_file() else None
