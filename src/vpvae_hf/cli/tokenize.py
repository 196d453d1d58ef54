"""`vpvae tokenize`: turn a data set of images or audio into one of codes."""

import argparse
import time
from functools import partial

import torch
from accelerate import PartialState

from vpvae_hf.data import CodeFiles, claim_code_folder, write_totals
from vpvae_hf.modalities import Execution, load_for_tokenizing, modality_of
from vpvae_hf.progress import progress_bar

from .inputs import data_config, execution_of


def run(options: argparse.Namespace) -> None:
    """Write this rank's share of the files; the first rank prints."""
    # `cpu` is set because Accelerate otherwise treats each of several ranks without a GPU as a job of its own.
    ranks = PartialState(cpu=options.device == "cpu" or not torch.accelerator.is_available())
    execution = execution_of(options, ranks.device)
    with execution.running():
        files, items = open_code_files(options, execution)
        if ranks.is_main_process and files.count < ranks.num_processes:
            idle = ranks.num_processes - files.count
            print(
                f"the data set has {files.count} shards for {ranks.num_processes} ranks: {idle} have nothing to do; "
                "with --no-streaming it is split into up to 256"
            )
        _write(files, ranks, options.batch_size, items)
    told = finish(options, files, items)  # the rank that finishes last writes the counts
    if ranks.is_main_process:
        print(told)
    ranks.destroy_process_group()


def open_code_files(options: argparse.Namespace, execution: Execution) -> tuple[CodeFiles, str]:
    """Claim the output folder for a run; call it within `execution.running()`.

    Args:
        options: the options of `vpvae tokenize`.

    Returns:
        The writer of the run's files, and the kind of items that they hold the codes of, e.g. "images".
    """
    model = load_for_tokenizing(options.tokenizer, options.revision, execution, options.codebook_size)
    modality, data = modality_of(model), data_config(options, model, streaming=not options.no_streaming)
    transform = modality.eval_transform(data, model)
    share = options.validation_share or 0.0
    source = modality.open(data, transform, other_columns=True, validation_share=share)
    # Only the names of slices and joined splits: `datasets` allows neither brackets nor a plus in a split's name.
    split = "_".join(part.partition("[")[0] for part in options.split.split("+"))
    files = CodeFiles(
        source,
        options.output,
        split=split,
        transform=transform,
        features=modality.code_features(data, model),
        encode=partial(modality.code_rows, transform=transform, model=model, refine_steps=options.refine_steps),
        batches_decoded=modality.batches_decoded,
        limit=options.limit,
    )
    claim_code_folder(
        options.output,
        {
            "items": modality.items,
            "tokenizer": options.tokenizer,
            "tokenizer_revision": options.revision,
            "fingerprint": model.fingerprint(),
            "codebook_size": model.quantize.codebook_size,
            "code_groups": model.quantize.code_groups,
            **modality.code_settings(data, model),
            **execution.record(),
            "refine_steps": options.refine_steps,
            "batch_size": options.batch_size,
            "dataset": options.dataset,
            "dataset_config": options.dataset_config,
            "dataset_revision": options.dataset_revision,
            "split": options.split,
            "validation_share": share,
            "column": source.column,
            "streaming": data.streaming,
            "limit": options.limit,
            "files": files.count,
        },
    )
    return files, modality.items


def finish(options: argparse.Namespace, files: CodeFiles, items: str) -> str:
    """Write the counts into the manifest if all files are written, and return the run's progress in words."""
    left = len(files.unfinished())
    if left:
        return f"{files.count - left} of {files.count} files in {options.output}; other ranks are writing the rest"
    done, unreadable = files.totals()
    write_totals(options.output, done, unreadable)
    return f"{done} {items} in {files.count} files in {options.output}; {unreadable} unreadable {items} left out"


def _write(files: CodeFiles, ranks: PartialState, batch_size: int, items: str) -> None:
    todo = files.unfinished(ranks.process_index, ranks.num_processes)
    # The bar counts shards, since the number of items is often not known beforehand.
    bar = progress_bar(total=len(todo), desc="Tokenizing", unit="file", shown=ranks.is_main_process and bool(todo))
    started, done = time.monotonic(), 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        bar.set_postfix_str(f"{done} {items}, {done / (time.monotonic() - started):.0f} {items}/s per rank")

    with bar:
        for number in todo:
            files.write(number, batch_size=batch_size, progress=progress)
            bar.update()
