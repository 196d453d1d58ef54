"""`vpvae evaluate`: how well a saved tokenizer reconstructs a data set's images or audio."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from vpvae_hf.files import same_place
from vpvae_hf.hub import read_results, write_results
from vpvae_hf.metric_labels import metric_label, metric_notes, sort_metrics
from vpvae_hf.metrics import ReconstructionQuality
from vpvae_hf.modalities import Batches, load_tokenizer, modality_of
from vpvae_hf.progress import progress_bar

from .inputs import data_config, execution_of


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    folder = Path(options.tokenizer)
    if options.save and not folder.is_dir():
        raise FileNotFoundError(f"--save needs a local folder, got {options.tokenizer}; download the tokenizer first")
    execution = execution_of(options)
    how = {"device": execution.find_device(), "codebook_size": options.codebook_size}
    model = execution.prepare(load_tokenizer(options.tokenizer, **how))
    modality = modality_of(model)
    batches = Batches(modality, model, data_config(options, model), batch_size=options.batch_size)
    extra = ["lpips"] if options.lpips else []
    extra += [f"{kind}/{each}" for kind in ("features", "frechet") if (each := getattr(options, kind)) is not None]
    how = {"extra": extra, "refine_steps": options.refine_steps}
    quality = modality.evaluate(model, _told(batches, options.limit, modality.items), **how)
    refined = f", codes refined in {options.refine_steps} steps" if options.refine_steps else ""
    print(f"{options.dataset}, {options.split}: {quality.items} {modality.items}, {quality.tokens} tokens{refined}")
    _print_metrics(quality)
    if options.save:
        entry = {"dataset": options.dataset, "split": options.split, modality.items: quality.items}
        entry |= {"refine_steps": options.refine_steps} if options.refine_steps else {}
        entry |= {"limit": options.limit} if options.limit is not None else {}
        entry |= {"codebook_size": model.quantize.codebook_size} if len(model.codebook_sizes) > 1 else {}
        results = read_results(folder)
        others = [old for old in results.get("evaluation", []) if not _is_alike(old, entry)]
        measured = {name: getattr(quality, name) for name in ("tokens", "metrics", "undefined")}
        results["evaluation"] = [*others, entry | measured | {"execution": execution.record()}]
        write_results(folder, results)
        print(f"added to the results and the model card in {folder}")


def _is_alike(recorded: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether a recorded evaluation is of the same data, codebook and refinement as a new one."""
    same = ("split", "limit", "refine_steps", "codebook_size")
    alike = all(recorded.get(name) == new.get(name) for name in same)
    return alike and same_place(recorded["dataset"], new["dataset"])


def _told(batches: Batches, limit: int | None, items: str) -> Iterator[Tensor]:
    """The batches to measure, with a bar that counts the measured items; the data set is opened for the first batch."""
    with progress_bar(total=batches.evaluation_length(limit), desc="Evaluating", unit=items) as bar:
        for batch in batches.evaluation(limit):
            yield batch
            bar.update(len(batch))


def _print_metrics(quality: ReconstructionQuality) -> None:
    """A line for each metric, with its value without quantization if that was measured."""
    for name in sort_metrics(quality.metrics):
        if name.endswith("_unquantized"):
            continue
        label, unquantized = metric_label(name), quality.metrics.get(f"{name}_unquantized")
        note = "" if unquantized is None else f" ({label.format(unquantized)} without quantization)"
        print(f"  {label.label:<31}{label.format(quality.metrics[name])}{note}")
    for note in metric_notes(quality.metrics, quality.undefined):
        print(note)
