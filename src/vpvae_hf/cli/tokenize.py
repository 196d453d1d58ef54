"""`vpvae tokenize`: a data set of images or audio into one of codes."""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from vpvae_hf import CodebookNotFittedError
from vpvae_hf.data import CodeFiles, check_readable, claim_folder, write_totals
from vpvae_hf.quantizers import NoCodesError

from .inputs import Inputs, inputs_for
from .tokenizers import load_tokenizer


def run(options: argparse.Namespace) -> None:
    """Write this rank's share of the files; the first rank prints."""
    # Asked for, or else Accelerate takes each of several ranks without a GPU for a job of its own.
    ranks = PartialState(cpu=not torch.accelerator.is_available())
    model = load_tokenizer(options.tokenizer, options.revision, ranks.device)
    if not model.quantize.config.fitted:
        raise CodebookNotFittedError(
            f"{options.tokenizer} has no fitted codebook; run `vpvae fit {options.tokenizer} --dataset NAME` first"
        )
    if not model.quantize.has_codes:
        kind = model.quantize.config.kind
        raise NoCodesError(
            f"{options.tokenizer} is continuous (kind {kind!r}) and has no codes; name another tokenizer"
        )
    inputs = inputs_for(model, options)
    coder = inputs.coder()
    source = inputs.source(streaming=not options.no_streaming, other_columns=True)
    # Of slices and joined splits the names alone: `datasets` takes neither brackets nor a plus in one.
    split = "_".join(part.partition("[")[0] for part in options.split.split("+"))
    files = CodeFiles(source, options.output, split=split, coder=coder)
    check_readable(source, coder.cut)
    claim_folder(options.output, _settings(inputs, source.column, files.count))
    if ranks.is_main_process and files.count < ranks.num_processes:
        idle = ranks.num_processes - files.count
        print(
            f"the data set has {files.count} shards for {ranks.num_processes} ranks: {idle} have nothing to do; "
            "with --no-streaming it is split into up to 256"
        )
    _write(files, ranks, options.batch_size, inputs.measured)
    _finish(files, ranks, options.output, inputs.measured)
    ranks.destroy_process_group()


def _settings(inputs: Inputs, column: str, files: int) -> dict[str, Any]:
    options, model = inputs.options, inputs.model
    return {
        "tokenizer": options.tokenizer,
        "tokenizer_revision": options.revision,
        "fingerprint": model.fingerprint(),
        "codebook_size": model.quantize.codebook_size,
        "code_groups": model.quantize.code_groups,
        **inputs.scale(),
        "dataset": options.dataset,
        "dataset_config": options.dataset_config,
        "dataset_revision": options.dataset_revision,
        "split": options.split,
        "column": column,
        "streaming": not options.no_streaming,
        **inputs.coding(),
        "files": files,
        inputs.measured: None,
        f"unreadable_{inputs.measured}": None,
    }


def _write(files: CodeFiles, ranks: PartialState, batch_size: int, measured: str) -> None:
    todo = files.unfinished(ranks.process_index, ranks.num_processes)
    # Shards are what is counted beforehand; the number of images or clips is often not known.
    bar = tqdm(total=len(todo), unit="file", disable=not ranks.is_main_process or not todo)
    started, done = time.monotonic(), 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        bar.set_postfix_str(f"{done} {measured}, {done / (time.monotonic() - started):.0f} {measured}/s a rank")

    with bar:
        for number in todo:
            files.write(number, batch_size=batch_size, progress=progress)
            bar.update()


def _finish(files: CodeFiles, ranks: PartialState, output: Path, measured: str) -> None:
    """Count, on the rank that comes last."""
    left = len(files.unfinished())
    if left == 0:
        done, unreadable = files.totals()
        write_totals(output, **{measured: done, f"unreadable_{measured}": unreadable})
    if ranks.is_main_process and left:
        print(f"{files.count - left} of {files.count} files in {output}; other ranks are at work on the rest")
    elif ranks.is_main_process:
        print(f"{done} {measured} in {files.count} files in {output}; {unreadable} unreadable {measured} left out")
