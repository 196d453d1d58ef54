"""The output folder of a run: never written over another run."""

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from vpvae_hf import distributed
from vpvae_hf.files import require_folder, write_json

from .checkpoint import OWN_MARKER, checkpoints, find_checkpoint
from .config import RunConfig
from .loop import Trainer

_log = logging.getLogger(__name__)


def prepare_output(output: Path, config: RunConfig, *, made: Sequence[str], marker: str = OWN_MARKER) -> Path | None:
    """Make the output folder, with settings.json; the checkpoint to go on from, None to start anew.

    Args:
        made: what a run leaves in it beside checkpoints, metrics and logs, its result last; deleted where the run is
            overwritten.
        marker: the name of a file that every complete checkpoint has.

    Raises:
        FileExistsError: it is a file, or holds another run.
        FileNotFoundError: no such checkpoint.
    """
    decided: list[Any] = [None]
    with distributed.failing_together():
        if distributed.rank() == 0:
            decided[0] = _decide_start(output, config, made, marker)
    if distributed.world_size() > 1:
        broadcast_object_list(decided)
    return decided[0]


def _decide_start(output: Path, config: RunConfig, made: Sequence[str], marker: str) -> Path | None:
    require_folder(output)
    checkpoint = None
    if config.resume_from_checkpoint is not None:
        checkpoint = find_checkpoint(output, config.resume_from_checkpoint, marker)
    there, finished = checkpoints(output, marker), (output / made[-1]).exists()
    if config.overwrite_output_dir and checkpoint is None:
        for folder in (*output.glob("checkpoint-*"), output / "logs", *(output / name for name in made)):
            shutil.rmtree(folder, ignore_errors=True)
        (output / "metrics.jsonl").unlink(missing_ok=True)
    elif checkpoint is None and (there or finished):
        go_on = "go on with --resume_from_checkpoint latest, " if there else ""
        raise FileExistsError(
            f"{output} holds another run; {go_on}start anew with --overwrite_output_dir, or name another folder with "
            "--output_dir"
        )
    elif checkpoint is None:
        (output / "metrics.jsonl").unlink(missing_ok=True)  # of a run that ended before its first checkpoint
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "settings.json", dataclasses.asdict(config))
    return checkpoint


@contextlib.contextmanager
def telling_of_checkpoints(output: Path, trainer: Trainer) -> Iterator[None]:
    """Where training is interrupted within it, say from where it can go on."""
    try:
        yield
    except KeyboardInterrupt:
        newest = next(reversed(checkpoints(output)), None)
        kept = f"{newest.name} is kept" if newest else "no checkpoint was made yet"
        _log.warning("interrupted at step %d; %s. Go on with --resume_from_checkpoint latest", trainer.step, kept)
        raise
