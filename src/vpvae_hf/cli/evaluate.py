"""`vpvae evaluate`: what a saved tokenizer keeps of a data set's images or audio."""

import argparse
from pathlib import Path

from vpvae_hf.hub import read_results, write_results
from vpvae_hf.metric_labels import METRIC_LABELS
from vpvae_hf.metrics import ReconstructionQuality, evaluate_reconstruction

from .inputs import inputs_for
from .tokenizers import load_tokenizer

_NOT_SHOWN = frozenset(("perplexity", "codes_used"))


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    folder = Path(options.tokenizer)
    if options.save and not folder.is_dir():
        raise FileNotFoundError(f"--save needs a local folder, got {options.tokenizer}; download the tokenizer first")
    model = load_tokenizer(options.tokenizer)
    inputs = inputs_for(model, options)
    measure = inputs.quality(lpips=options.lpips)
    quality = evaluate_reconstruction(model, inputs.in_order(), metric_fn=measure, unquantized=inputs.unquantized)
    print(f"{options.dataset}, {options.split}: {quality.items} {inputs.measured}, {quality.tokens} tokens")
    _print_figures(quality)
    if options.save:
        entry = {"dataset": options.dataset, "split": options.split, inputs.measured: quality.items}
        results = read_results(folder)
        same = (options.dataset, options.split)
        others = [old for old in results.get("evaluation", []) if (old["dataset"], old["split"]) != same]
        results["evaluation"] = [*others, entry | {"tokens": quality.tokens, "metrics": quality.metrics}]
        write_results(folder, results)
        print(f"added to the results and the model card in {folder}")


def _print_figures(quality: ReconstructionQuality) -> None:
    for name, label in METRIC_LABELS.items():
        if name not in quality.metrics or name in _NOT_SHOWN:
            continue
        notes = []
        if f"{name}_unquantized" in quality.metrics:
            notes.append(f"{label.format(quality.metrics[f'{name}_unquantized'])} without quantization")
        if quality.undefined.get(name):
            notes.append(f"not defined for {quality.undefined[name]}, which are left out")
        note = f" ({'; '.join(notes)})" if notes else ""
        print(f"  {label.label:<25}{label.format(quality.metrics[name])}{note}")
