"""The output folder of a run. It holds a single run, and each of its checkpoints is complete or absent."""

import contextlib
import dataclasses
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from vpvae_hf import distributed
from vpvae_hf.files import open_to_usual_readers, require_folder, write_json
from vpvae_hf.modalities.config import RunConfig

_log = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")
_STREAM = "stream_{}.pt"  # a rank's position in the data
_CHECKPOINT_FILE = _STREAM.format(0)  # every complete checkpoint of `Trainer` has this file


def checkpoints(output: Path, checkpoint_file: str = _CHECKPOINT_FILE) -> list[Path]:
    """The complete checkpoints of a run, which are those that hold `checkpoint_file`, the oldest first."""
    named = [folder for folder in output.glob("checkpoint-*") if _NAME.fullmatch(folder.name)]
    complete = [folder for folder in named if (folder / checkpoint_file).is_file()]
    return sorted(complete, key=lambda folder: int(_NAME.fullmatch(folder.name)[1]))


def find_checkpoint(output: Path, which: str, checkpoint_file: str = _CHECKPOINT_FILE) -> Path | None:
    """The checkpoint that `which` names: "latest" (None if there is none), a path, or a name in the output folder."""
    if which == "latest":
        return next(reversed(checkpoints(output, checkpoint_file)), None)
    folder = next((folder for folder in (Path(which), output / which) if folder.is_dir()), None)
    if folder is None:
        there = ", ".join(folder.name for folder in checkpoints(output, checkpoint_file)) or "none"
        raise FileNotFoundError(f"no checkpoint {which}; {output} holds {there}")
    if not _NAME.fullmatch(folder.name) or not (folder / checkpoint_file).is_file():
        raise FileNotFoundError(
            f"{folder} is no checkpoint of this trainer; its checkpoints are folders checkpoint-STEP, and "
            "--resume_from_checkpoint latest takes the newest. To start from a saved model, name a tokenizer with "
            "--model.pretrained, or a transformer with --pretrained"
        )
    return folder


def save_checkpoint(
    accelerator: Accelerator, output: Path, step: int, stream: dict[str, Any], limit: int | None
) -> None:
    """Write what the ranks need to resume, and keep the newest `limit` checkpoints.

    The checkpoint is written under another name and renamed when it is complete. If writing fails, the run continues
    without the checkpoint and logs why.

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
    # Any exception: libraries report a full disk in many ways, and a run is worth more than a checkpoint.
    except Exception as error:
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
            _log.error(
                "no checkpoint at step %d: %s. Training goes on; make room in %s before the next", step, error, output
            )
        return
    if accelerator.is_main_process:
        open_to_usual_readers(aside)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
        for old in checkpoints(output)[: 0 if limit is None else -limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, folder: Path) -> dict[str, Any] | None:
    """Restore what `save_checkpoint` wrote; returns this rank's position in the data, None if it was not saved.

    Raises a ValueError if the checkpoint belongs to another model or to other settings.
    """
    try:
        accelerator.load_state(str(folder))
    except (RuntimeError, ValueError, KeyError, IndexError, OSError) as error:
        raise ValueError(
            f"{folder} cannot be resumed with these settings: {error}; resume with those that the run was started with"
        ) from error
    stream = folder / _STREAM.format(accelerator.process_index)
    return torch.load(stream, weights_only=False) if stream.is_file() else None


@contextlib.contextmanager
def resume_hint(output: Path, step: Callable[[], int], checkpoint_file: str = _CHECKPOINT_FILE) -> Iterator[None]:
    """A context that logs the step and the checkpoint to resume from, if training is interrupted in it."""
    try:
        yield
    except KeyboardInterrupt:
        newest = next(reversed(checkpoints(output, checkpoint_file)), None)
        kept = f"{newest.name} is kept" if newest else "no checkpoint was made yet"
        _log.warning("interrupted at step %d; %s. Go on with --resume_from_checkpoint latest", step(), kept)
        raise


def prepare_output(
    output: Path, config: RunConfig, *, outputs: Sequence[str], checkpoint_file: str = _CHECKPOINT_FILE
) -> Path | None:
    """Make the output folder, with settings.json; returns the checkpoint to resume from, None to start anew.

    Args:
        outputs: folders that a run makes in addition to checkpoints and logs, the result last. Overwriting the run
            deletes them.
        checkpoint_file: the name of a file that every complete checkpoint has.

    Raises:
        FileExistsError: `output` is a file, or holds another run.
        FileNotFoundError: no such checkpoint.
    """
    decided = None
    with distributed.failing_together():
        if distributed.rank() == 0:
            decided = _decide_start(output, config, outputs, checkpoint_file)
    return distributed.objects_of_all_ranks(decided)[0]


def _decide_start(output: Path, config: RunConfig, outputs: Sequence[str], checkpoint_file: str) -> Path | None:
    require_folder(output)
    checkpoint = None
    if config.resume_from_checkpoint is not None:
        checkpoint = find_checkpoint(output, config.resume_from_checkpoint, checkpoint_file)
    if checkpoint is None:
        there = checkpoints(output, checkpoint_file)
        if config.overwrite_output_dir:
            for folder in (*output.glob("checkpoint-*"), output / "logs", *(output / name for name in outputs)):
                shutil.rmtree(folder, ignore_errors=True)
        elif there or (output / outputs[-1]).exists():
            go_on = "go on with --resume_from_checkpoint latest, " if there else ""
            raise FileExistsError(
                f"{output} holds another run; {go_on}start anew with --overwrite_output_dir, or name another folder "
                "with --output_dir"
            )
        (output / "metrics.jsonl").unlink(missing_ok=True)  # there may be one from a run that made no checkpoint
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "settings.json", dataclasses.asdict(config))
    return checkpoint
