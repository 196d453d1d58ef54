"""Codes for the batches of any program that maps a function over a data set."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vpvae_hf.bundled import bundled_or_given
from vpvae_hf.files import local_path
from vpvae_hf.settings import require_count, require_integer
from vpvae_hf.unreadable import MOST_UNREADABLE, SkippedFiles, UnreadableFileError

from . import load_for_tokenizing, modality_of
from .execution import Execution

# Tokenizers that a process keeps loaded.
_LOADED = 4


class BatchTokenizer:
    """A function that adds codes to a batch, for `datasets.Dataset.map(batched=True)` and Ray Data's `map_batches`.

    It holds only settings, so sending it to another process takes a few hundred bytes; each process loads the tokenizer
    once, with its first batch. Codes are those that `vpvae tokenize` writes for the same files.

    A batch is a mapping from columns to lists or arrays. Values of the column are:

    - images: bytes of a file, a path, {"bytes", "path"} with one of them, PIL images, or arrays [H, W, C] uint8;
    - audio: the same kinds of files, {"array", "sampling_rate"}, or arrays [T] at the tokenizer's rate.

    A row whose file cannot be read is left out of the batch; the number of such rows is logged with the first reasons.
    So give `datasets` columns of `Image(decode=False)` or `Audio(decode=False)`: if it decodes files itself, one
    unreadable file ends the run. Also name `column` in its `remove_columns`: otherwise it keeps all rows of that
    column, and a batch with fewer rows ends the run.

    Args:
        tokenizer: folder or hub id.
        column: the column that holds the images or the audio.
        revision: branch, tag or commit of the hub id.
        codebook_size: K of the codebook to encode with, if the tokenizer has several; None for the one selected.
        batch_size: how many items are encoded together; a batch may be larger.
        refine_steps: refine the codes of each batch in at most this many steps, see `Tokenizer.tokenize`; 0 for nearest
            codes.
        keep_column: return the column, too; `datasets` then needs no `remove_columns`.
        dtype, compile, device, exact: how the tokenizer is run, as `Execution` takes it; by default on a GPU if the
            process has one.
        size, shortest_side: for images, the options of `vpvae tokenize`.
        resample, downmix: for audio, the options of `vpvae tokenize`.

    Raises:
        TypeError: the tokenizer is a model; or, in a call, the batch or a value is of another kind.
        ValueError: in a call, settings are invalid, the column is missing, columns have different lengths, or 1000
            files in a row cannot be read. Errors of `load_tokenizer` are raised in a call, too.
    """

    def __init__(
        self,
        tokenizer: str | os.PathLike,
        column: str,
        *,
        revision: str | None = None,
        codebook_size: int | None = None,
        batch_size: int = 16,
        refine_steps: int = 0,
        keep_column: bool = False,
        dtype: str = "float32",
        compile: bool = False,
        device: str | None = None,
        exact: bool = False,
        size: int | None = None,
        shortest_side: int | None = None,
        resample: bool = False,
        downmix: bool = False,
    ):
        if not isinstance(tokenizer, str | os.PathLike):
            raise TypeError(
                f"tokenizer must be a folder or a hub id, got {type(tokenizer).__name__}; give the folder that "
                "save_pretrained wrote, from which each process loads its own"
            )
        require_integer("batch_size", batch_size, 1)
        require_integer("refine_steps", refine_steps, 0)
        require_count("codebook_size", codebook_size)
        execution = Execution(dtype=dtype, compile=compile, device=device, exact=exact)
        settings = {"size": size, "shortest_side": shortest_side, "resample": resample, "downmix": downmix}
        name = os.fspath(tokenizer)
        self._run = _Run(
            tokenizer=name,
            revision=revision,
            codebook_size=codebook_size,
            stamp=_stamp(name),
            execution=execution,
            column=column,
            batch_size=batch_size,
            refine_steps=refine_steps,
            settings=tuple(settings.items()),
        )
        self._keep_column = keep_column

    def __call__(self, batch: Mapping[str, Sequence]) -> dict[str, Any]:
        """The batch with "codes" [n, h, w] of images, or a list of arrays [n] of clips with their "num_samples", in the
        smallest type that holds them.
        """
        column, worker = self._run.column, _worker(self._run)
        worker.check(batch)
        kept, added = worker.codes(batch[column])
        whole = len(kept) == len(batch[column])
        others = {
            name: values if whole else _taken(values, kept)
            for name, values in batch.items()
            if name != column or self._keep_column
        }
        return others | added


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What decides the codes of a run: the key by which all copies of a function in a process share one tokenizer."""

    tokenizer: str
    revision: str | None
    codebook_size: int | None
    stamp: tuple
    execution: Execution
    column: str
    batch_size: int
    refine_steps: int
    settings: tuple[tuple[str, Any], ...]


@lru_cache(maxsize=_LOADED)
def _worker(run: _Run) -> "_Worker":
    return _Worker(run)


class _Worker:
    """A loaded tokenizer, and how many files it could not read."""

    def __init__(self, run: _Run):
        with run.execution.running():
            self._model = load_for_tokenizing(run.tokenizer, run.revision, run.execution, run.codebook_size)
        self._modality, self._run = modality_of(self._model), run
        data = self._modality.data_config(self._model, **dict(run.settings))
        self._transform = self._modality.eval_transform(data, self._model)
        self._features = self._modality.code_features(data, self._model)
        self._skipped = SkippedFiles(f"{self._modality.items} of column {run.column!r}")
        self._told = self._in_a_row = 0

    def check(self, batch: Mapping[str, Any]) -> None:
        """Check a batch, above all that it is not a single row: taken for a batch, a row would lose its values."""
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"a batch must be a mapping from columns to lists or arrays, got {type(batch).__name__}; leave out "
                "batch_format in Ray Data, with_format and input_columns in `datasets`"
            )
        if self._run.column not in batch:
            raise ValueError(f"the batch has no column {self._run.column!r}; it has {', '.join(map(str, batch))}")
        for name in self._features:
            if name in batch:
                raise ValueError(f'the batch has a column "{name}" already; rename it')
        lengths = {name: _length(name, values) for name, values in batch.items()}
        for name, length in lengths.items():
            if length != lengths[self._run.column]:
                raise ValueError(
                    f"column {name!r} has {length} values, column {self._run.column!r} {lengths[self._run.column]}; "
                    "give batches of columns of one length, as `datasets` does with batched=True"
                )

    def codes(self, values: Sequence) -> tuple[list[int], dict[str, Any]]:
        """The places of the values that can be read, and the columns of their codes."""
        with ThreadPoolExecutor() as threads:
            items = list(threads.map(self._item, values))
        kept = [place for place, item in enumerate(items) if isinstance(item, Tensor)]
        self._count([str(item) for item in items if not isinstance(item, Tensor)], some_read=bool(kept))
        how = {"transform": self._transform, "model": self._model, "batch_size": self._run.batch_size}
        how["refine_steps"] = self._run.refine_steps
        with self._run.execution.running():
            rows = next(self._modality.code_rows([[items[place] for place in kept]], **how)) if kept else []
        return kept, {name: _column([row[name] for row in rows], kind) for name, kind in self._features.items()}

    def _item(self, value: Any) -> Tensor | UnreadableFileError:
        try:
            return self._modality.item_of(value, self._transform)
        except UnreadableFileError as error:
            return error

    def _count(self, reasons: list[str], some_read: bool) -> None:
        self._in_a_row = len(reasons) + (0 if some_read else self._in_a_row)
        self._skipped.add(reasons, len(reasons))
        # A line for each batch would fill the logs of a run over millions of files.
        if self._skipped.count >= 2 * self._told:
            self._skipped.tell()
            self._told = self._skipped.count
        if reasons and not some_read and self._in_a_row >= MOST_UNREADABLE:
            raise ValueError(
                f"{self._in_a_row} {self._modality.items} of column {self._run.column!r} in a row cannot be read (the "
                f"last: {reasons[-1]}); see whether the column holds {self._modality.items}, and whether its files can "
                "be reached"
            )


def _stamp(name: str) -> tuple:
    """A value that changes when a local tokenizer is saved again; empty for a hub id.

    With it, `datasets` computes codes anew instead of taking those of the former tokenizer from its cache.
    """
    folder = local_path(bundled_or_given(name))
    files = [] if folder is None else sorted(Path(folder).glob("*"))
    status = [(file.name, file.stat()) for file in files if file.suffix in (".json", ".safetensors")]
    return tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in status)


def _length(name: str, values: Any) -> int:
    """The number of values of a column; a TypeError if it is a single value."""
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__") or getattr(values, "ndim", 1) == 0:
        raise TypeError(
            f"column {name!r} is one {type(values).__name__}, not a list of values; use map with batched=True in "
            "`datasets`, map_batches in Ray Data"
        )
    return len(values)


def _taken(values: Sequence, places: list[int]) -> Sequence:
    return values[places] if isinstance(values, np.ndarray) else [values[place] for place in places]


def _column(values: list, kind: Any) -> Any:
    """A column of codes as an array if all rows have one shape, otherwise as a list."""
    if not hasattr(kind, "dtype"):
        return values
    return np.asarray(values, dtype=kind.dtype).reshape(-1, *getattr(kind, "shape", ()))
