"""`vpvae generate`: images or clips of a saved pipeline, as files."""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, LDMPipeline
from diffusers.utils import logging
from huggingface_hub import hf_hub_download

from vpvae_hf.files import claim_output_folder, hint_at_local_path, local_path, read_json
from vpvae_hf.generation import CodePipeline, write_generated
from vpvae_hf.hub import class_in, hub_errors
from vpvae_hf.hub.contents import PIPELINE_INDEX
from vpvae_hf.modalities import Execution

_CLASSES = ("VPAutoregressivePipeline", "VPMaskedPipeline", "LDMPipeline")
_AT_ONCE = 16  # images or clips that are made together
_SAMPLING = ("temperature", "top_k", "top_p")


def run(options: argparse.Namespace) -> None:
    """Generate, write the files, and print which they are and how long it took."""
    claim_output_folder(options.output, overwrite=options.overwrite)
    device = Execution(device=options.device).find_device()
    pipeline = load_pipeline(options.pipeline, options.revision).to(device)
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty())
    make = _of_images if isinstance(pipeline, LDMPipeline) else _of_codes
    started = time.monotonic()
    signals, rate = make(pipeline, options)
    seconds = time.monotonic() - started
    per_row = options.num if options.classes or options.texts else math.isqrt(len(signals) - 1) + 1
    files = write_generated(signals, options.output, sampling_rate=rate, columns=per_row, each=True)
    noun = "images" if rate is None else "clips"
    print(f"{len(signals)} {noun} in {seconds:.1f} s on {device}: {files[0]} to {files[-2].name}; all: {files[-1]}")


def load_pipeline(name: str, revision: str | None = None) -> DiffusionPipeline:
    """A saved pipeline of one of the generation recipes, from a folder or a hub id, on the CPU.

    Raises:
        ValueError: it is no such pipeline.
        FileNotFoundError, PermissionError, ConnectionError: it cannot be loaded.
    """
    folder = local_path(name, suffixes=(".json", ".safetensors"))
    if folder is None:
        with hint_at_local_path(name), hub_errors(name, doing="load", revision=revision):
            index = Path(hf_hub_download(name, PIPELINE_INDEX, revision=revision))
    elif not (index := folder / PIPELINE_INDEX).is_file():
        inner, found = folder / "pipeline", class_in(folder)
        hint = f"; name {inner}" if (inner / PIPELINE_INDEX).is_file() else ""
        hint = hint or (f", but {found}; name a pipeline that a generation recipe made" if found else "")
        raise ValueError(f"{name} is no saved pipeline: it has no {PIPELINE_INDEX}{hint}")
    if (found := read_json(index).get("_class_name")) not in _CLASSES:
        raise ValueError(f"{name} holds a {found}, which this command does not know; it knows {', '.join(_CLASSES)}")
    with _without_bars(), hub_errors(name, doing="load", revision=revision):
        return DiffusionPipeline.from_pretrained(name if folder is None else folder, revision=revision)


def _of_codes(pipeline: CodePipeline, options: argparse.Namespace) -> tuple[list[np.ndarray], int | None]:
    """Images or clips by a transformer, and their sampling rate, which is None for images."""
    conditions = _conditions(pipeline, options)
    settings = {name: value for name in _SAMPLING if (value := getattr(options, name)) is not None}
    settings |= {"guidance_scale": options.guidance, "generator": torch.Generator().manual_seed(options.seed)}
    signals: list[np.ndarray] = []
    for start in range(0, len(conditions), _AT_ONCE):
        some = conditions[start : start + _AT_ONCE]
        labels = None if some[0] is None else some
        made = pipeline(labels, num_images=len(some), output_type="np", **settings)
        signals += list(made.get("images", made.get("audios")))
    if pipeline.vocabulary.is_audio and made.sampling_rate is None:
        raise ValueError(f"{options.pipeline} makes signals that are neither images nor audio; call it from Python")
    return signals, made.get("sampling_rate")


def _conditions(pipeline: CodePipeline, options: argparse.Namespace) -> list[Any]:
    """The condition of each image or clip: `num` times each class or text, or `num` times None."""
    vocabulary, knows_texts = pipeline.vocabulary, pipeline.text_tokenizer is not None
    given = options.texts or options.classes or [None]
    if options.texts and not knows_texts:
        remedy = "name classes with --class" if vocabulary.condition_size else "leave --text out"
        raise ValueError(f"{options.pipeline} was trained without texts, got --text {options.texts[0]!r}; {remedy}")
    if options.classes and (knows_texts or not vocabulary.condition_size):
        remedy = "give a text with --text" if knows_texts else "leave --class out"
        raise ValueError(f"{options.pipeline} was trained without classes, got --class {options.classes[0]}; {remedy}")
    if options.guidance != 1 and given == [None]:
        what = "text with --text" if knows_texts else "class with --class" if vocabulary.condition_size else None
        remedy = f"give a {what}" if what else "this pipeline was trained without these, so leave --guidance out"
        raise ValueError(f"--guidance {options.guidance:g} needs a class or text to guide to; {remedy}")
    names = vocabulary.condition_names or ()
    if options.classes:
        given = [int(each) if each.isdecimal() and each not in names else each for each in given]
    return [each for each in given for _ in range(options.num)]


def _of_images(pipeline: LDMPipeline, options: argparse.Namespace) -> tuple[list[np.ndarray], None]:
    """Images by latent diffusion."""
    given = {"--class": options.classes, "--text": options.texts, "--guidance": options.guidance != 1}
    given |= {f"--{name.replace('_', '-')}": getattr(options, name) is not None for name in _SAMPLING}
    for name, is_given in given.items():
        if is_given:
            raise ValueError(f"{options.pipeline} is an LDMPipeline, which does not use {name}; leave it out")
    generator, signals = torch.Generator().manual_seed(options.seed), []
    for start in range(0, options.num, _AT_ONCE):
        count = min(_AT_ONCE, options.num - start)
        signals += list(pipeline(count, generator, output_type="np").images)
    return signals, None


@contextmanager
def _without_bars() -> Iterator[None]:
    """A context without the libraries' progress bars, which are no help if parts are read within a second."""
    import transformers

    of_both = (logging, transformers.utils.logging)
    shown = [each for each in of_both if each.is_progress_bar_enabled()]
    for each in shown:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in shown:
            each.enable_progress_bar()
