"""The runs of a comparison: each is trained and measured once, and keeps its results. K is the number of codes."""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import logging
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpvae_hf.files import read_json, same_place, write_json
from vpvae_hf.modalities import MODALITIES, load_tokenizer, modality_of
from vpvae_hf.modalities.config import TrainingConfig
from vpvae_hf.progress import progress_bar
from vpvae_hf.quantizers import quantizer_config
from vpvae_hf.training.config import parse_config
from vpvae_hf.training.run import train_tokenizer

from .columns import measured_column
from .config import START, Comparison, Method
from .measuring import Piece, codec_pieces, codec_reaches, measure, measure_codec, pieces_of

_log = logging.getLogger(__name__)

_RESULT = "result.json"
_TOKENIZER = "training/tokenizer"


@dataclass(frozen=True)
class Run:
    """One training of a method, or of a start: a tokenizer that methods start from.

    Attributes:
        method: its name; "start" for a start.
        size: the K that it is compared at; None for a start.
        folder: for its settings, checkpoints, tokenizer and results.
        settings: its training settings, as nested mappings.
        start: folder of the run whose tokenizer it starts from; None for a new tokenizer.
        pieces: what is measured of it; empty for a start.
    """

    method: str
    size: int | None
    seed: int
    folder: Path
    settings: dict[str, Any]
    start: Path | None = None
    pieces: tuple[Piece, ...] = field(default=(), repr=False)

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of its training; None if it is not trained."""
        path = self.folder / _RESULT
        return read_json(path) if path.exists() else None

    @property
    def missing(self) -> list[Piece]:
        """What is still to be measured."""
        return [piece for piece in self.pieces if piece.read() is None]

    @property
    def is_finished(self) -> bool:
        """Whether it is trained and measured."""
        return (self.folder / _RESULT).exists() and not self.missing


def planned_runs(
    comparison: Comparison,
    *,
    methods: Collection[str] | None = None,
    codebook_sizes: Collection[int] | None = None,
    seeds: Collection[int] | None = None,
) -> list[Run]:
    """All runs, or those of some methods, sizes and seeds, and the starts that they need, seed by seed.

    Raises:
        ValueError: a method, size or seed that the comparison does not have, or invalid settings of a quantizer.
    """
    runs = []
    for name, method in comparison.methods.items():
        for size in method.codebook_sizes or comparison.latent_dims:
            for seed in method.seeds or comparison.seeds:
                runs.append(_run(comparison, name, method, size, seed))
    chosen = runs
    filters = (("method", "method", methods), ("codebook size", "size", codebook_sizes), ("seed", "seed", seeds))
    for what, name, wanted in filters:
        there = {getattr(run, name) for run in runs}
        if unknown := set(wanted or ()) - there:
            names = ", ".join(map(str, sorted(there)))
            raise ValueError(f"the comparison has no {what} {', '.join(map(str, sorted(unknown)))}; it has {names}")
        chosen = [run for run in chosen if wanted is None or getattr(run, name) in wanted]
    starts = {run.start: _start(comparison, run) for run in chosen if _starts_from_start(comparison, run)}
    # Seed by seed, so that a first table is there early.
    return sorted([*starts.values(), *chosen], key=lambda run: run.seed)


def run_all(comparison: Comparison, runs: Sequence[Run], arguments: Sequence[str] = ()) -> list[Run]:
    """Train and measure the runs that are not finished; return all finished runs, starts included.

    In the end it measures the modality's codec up to the highest rate of the finished runs. Several processes may call
    it at once: each takes runs that no other works on. A run that was interrupted continues from its last checkpoint.

    Args:
        arguments: training settings as on a recipe's command line, which override those of all runs.

    Raises:
        ValueError: a folder holds a run with other settings.
    """
    todo = [run for run in runs if not run.is_finished]
    for run in runs:
        path = run.folder / "run.json"
        if path.exists() and not _is_same(read_json(path), _record(run, arguments)):
            raise ValueError(
                f"{run.folder} holds a run with other settings, see {path.name} there; delete that folder, or name "
                "another one with --output"
            )
    finished = len(runs) - len(todo)
    with progress_bar(total=len(runs), desc="Comparison", unit="run", initial=finished) as bar:
        for run in todo:
            bar.set_postfix_str(run.folder.name)
            with _claimed(run.folder) as mine:
                if run.start is not None and not (run.start / _RESULT).exists():
                    _log.warning("%s needs %s, which is not finished; left for another time", run.folder, run.start)
                elif mine:
                    _train_and_measure(comparison, run, arguments)
            bar.update()
    done = [run for run in runs if run.is_finished]
    _measure_codec(comparison, [run for run in done if run.size is not None], arguments)
    return done


def bits_per_token(result: dict[str, Any]) -> float:
    """Bits per token of a run's codes; if it has none, of the K that it is compared at.

    Args:
        result: the result of the run's training.
    """
    size, groups = result["codebook_size"], result["code_groups"]
    return math.log2(result["size"]) if size is None else groups * math.log2(size)


def _run(comparison: Comparison, name: str, method: Method, size: int, seed: int) -> Run:
    quantizer = {"codebook_size": size, "latent_dim": comparison.latent_dims[size]}
    quantizer |= method.quantizer | method.by_size.get(size, {})
    dim = quantizer_config(quantizer).latent_dim  # which raises an error for wrong settings before the first run
    if method.starts_from in (None, START):
        start = method.starts_from and f"{START}-d{dim}-seed{seed}"
    else:
        start = f"{method.starts_from}-{comparison.size_of_start(name, size)}-seed{seed}"
    folder = comparison.output_dir / f"{name}-{size}-seed{seed}"
    measured = (measured_column(column, quantizer) for column in comparison.measure.columns)
    columns = [column for column in dict.fromkeys(measured) if column is not None]
    return Run(
        name,
        size,
        seed,
        folder,
        comparison.settings | method.settings | {"quantizer": quantizer, "seed": seed},
        start and comparison.output_dir / start,
        tuple(pieces_of(comparison, folder, columns)),
    )


def _starts_from_start(comparison: Comparison, run: Run) -> bool:
    return comparison.methods[run.method].starts_from == START


def _start(comparison: Comparison, run: Run) -> Run:
    """The start that a run needs."""
    quantizer = {"latent_dim": run.settings["quantizer"]["latent_dim"], **comparison.start.quantizer}
    quantizer_config(quantizer)
    settings = comparison.settings | comparison.start.settings | {"quantizer": quantizer, "seed": run.seed}
    return Run(START, None, run.seed, run.start, settings)


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether this process has claimed the run; the claim ends with the process, even if that is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _record(run: Run, arguments: Sequence[str]) -> dict[str, Any]:
    return {"settings": run.settings, "start": run.start and run.start.name, "arguments": list(arguments)}


def _is_same(held: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether two records are of one run; paths may be spelt differently."""
    pairs = itertools.zip_longest(held["arguments"], record["arguments"], fillvalue="")
    split = [[argument.partition("=") for argument in pair] for pair in pairs]
    held = {"start": record["start"]} | held  # earlier records lack it
    return all(held[name] == record[name] for name in ("settings", "start")) and all(
        one[0] == other[0] and same_place(one[2], other[2]) for one, other in split
    )


def _train_and_measure(comparison: Comparison, run: Run, arguments: Sequence[str]) -> None:
    config = _training_config(comparison, run, arguments)
    if run.result is None:
        _train(run, config)
    for piece in run.missing:
        measure(piece, comparison, config, run.folder / _TOKENIZER, run.folder, run.size)


def _measure_codec(comparison: Comparison, runs: Sequence[Run], arguments: Sequence[str]) -> None:
    """Measure the modality's codec up to the highest rate of trained runs, unless another process does so now."""
    results = [run.result for run in runs]
    if not results or any("rate_per_bit" not in each for each in results):  # runs of earlier versions have no rates
        return
    rate = max(bits_per_token(each) * each["rate_per_bit"] for each in results)
    pieces = codec_pieces(comparison)
    record = {"settings": comparison.settings, "start": None, "arguments": list(arguments)}
    for piece in pieces:
        if piece.file.exists() and not _is_same(read_json(piece.file)["record"], record):
            piece.file.unlink()  # it was measured on other items
    missing = [piece for piece in pieces if not codec_reaches(piece, rate)]
    if missing:
        with _claimed(missing[0].file.parent) as mine:
            if mine:
                config = _training_config(comparison, runs[0], arguments)
                measure_codec(missing, comparison, config, runs[0].folder / _TOKENIZER, rate, record)


def _training_config(comparison: Comparison, run: Run, arguments: Sequence[str]) -> TrainingConfig:
    """The settings of a run's training; they are also written into its folder."""
    from omegaconf import OmegaConf

    overlay = run.folder / "settings.yaml"
    start = {} if run.start is None else {"model": {"pretrained": str(run.start / _TOKENIZER)}}
    OmegaConf.save(OmegaConf.create({"base": str(comparison.training), **run.settings, **start}), overlay)
    write_json(run.folder / "run.json", _record(run, arguments))
    config = parse_config(MODALITIES[comparison.modality].config_class, ["--config", str(overlay), *arguments])
    return dataclasses.replace(
        config,
        output_dir=str(run.folder / "training"),
        resume_from_checkpoint="latest",
        overwrite_output_dir=True,  # if it was interrupted before there was a checkpoint
        checkpoints_total_limit=1,
    )


def _train(run: Run, config: TrainingConfig) -> None:
    model = load_tokenizer(train_tokenizer(config))
    log = run.folder / "training/metrics.jsonl"  # not there if nothing was trained
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    result = {
        **{name: getattr(run, name) for name in ("method", "size", "seed")},
        **{name: getattr(model.quantize, name) for name in ("codebook_size", "code_groups", "latent_dim")},
        "rate_per_bit": modality_of(model).rate(model, 1.0),
        "steps": config.max_train_steps,
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "training_seconds": _seconds(rows),
        "validation": [row for row in rows if any(name.startswith("validation/") for name in row)],
    }
    write_json(run.folder / _RESULT, result)


def _seconds(rows: Sequence[dict[str, float]]) -> float:
    """Seconds of training without validation."""
    seconds, before = 0.0, 0
    for row in rows:
        if "examples" in row:
            seconds, before = seconds + (row["examples"] - before) / row["examples_per_second"], row["examples"]
    return seconds
