"""Turn a trained tokenizer into one that comes with the package: half the bytes, a picture, and metrics in its card.

    python recipes/bundled/bundle.py TOKENIZER model_cards/NAME --measured DATA:validation DATA:test --refined DATA:test

Weights are rounded to float16, except the quantizer's. Every codebook is measured on every split of --measured, and
refined codes of the selected codebook on a part of every split of --refined. NAME.md in the folder of this file is the
card's text about data and limits.
"""

import argparse
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from vpvae_hf import AutoencoderVP
from vpvae_hf.cli.main import main
from vpvae_hf.cli.pictures import save_every_size
from vpvae_hf.data import load_photographs
from vpvae_hf.files import read_json, write_atomically, write_json, write_text
from vpvae_hf.hub import read_results, write_results
from vpvae_hf.hub.card import CARD, MARKER
from vpvae_hf.hub.saved import strip_local_paths
from vpvae_hf.modalities import load_tokenizer

PICTURES = 5
_LICENSE = "license: other\nlicense_name: research-only\n"
REFINE_STEPS = 10


def round_weights(folder: Path) -> None:
    """Round all weights except the quantizer's in a saved tokenizer's file."""
    (file,) = folder.glob("*.safetensors")
    weights = {
        name: weight if name.startswith("quantize.") or not weight.is_floating_point() else weight.to(torch.float16)
        for name, weight in load_file(file).items()
    }
    with write_atomically(file) as aside:
        save_file(weights, aside, metadata={"format": "pt"})


def run(*arguments: object) -> None:
    """Run a command of `vpvae`."""
    print("vpvae", *arguments, flush=True)
    if main([str(argument) for argument in arguments]) != 0:
        raise SystemExit(1)


def draw_photographs(folder: Path) -> None:
    """The card's picture: photographs that training has not seen, at every codebook size."""
    model = load_tokenizer(folder)
    if not isinstance(model, AutoencoderVP):
        return
    photographs = [image for image in load_photographs()[0] if np.ptp(image, axis=2).any()]  # in colour
    save_every_size(folder / "reconstruction.png", model, photographs[:PICTURES])


def add_about(card: Path, name: str) -> None:
    """Add data, limits and the bundled name to the card, and remove the marker, so that it is not written anew."""
    about = Path(__file__).with_name(f"{name}.md").read_text("utf-8")
    text = card.read_text("utf-8").replace(f"{MARKER}\n\n", "").replace("## Training\n", f"{about}\n## Training\n", 1)
    text = text.replace(f'name = "{name}"', f'name = bundled_tokenizer("{name}")')
    # Data set and start have local names, which the Hub could not find; the data decides the licence.
    text = re.sub(r"^base_model: .*\ndatasets:\n- .*\n", _LICENSE, text, count=1, flags=re.MULTILINE)
    write_text(card, re.sub(r"^(from vpvae_hf import \w+)$", r"\1, bundled_tokenizer", text, flags=re.MULTILINE))


def bundle(options: argparse.Namespace) -> None:
    if options.output.exists():
        raise SystemExit(f"{options.output} exists; remove it first")
    # Pictures and sounds come from the data, which we may not pass on.
    shutil.copytree(options.tokenizer, options.output, ignore=shutil.ignore_patterns("*.png", "*.flac"))
    round_weights(options.output)
    # Earlier measurements do not hold for the rounded weights.
    write_results(options.output, read_results(options.output) | {"evaluation": []})
    draw_photographs(options.output)
    for measured in options.measured:
        for size in load_tokenizer(options.output).codebook_sizes:
            evaluate(options, measured, "--codebook-size", size)
    for measured in options.refined:
        for steps in (0, REFINE_STEPS):  # nearest codes of the same items, to compare with
            evaluate(options, measured, "--limit", options.refined_items, "--refine", steps)
    config = options.output / "config.json"
    write_json(config, strip_local_paths(read_json(config)))
    results = read_results(options.output)
    if start := results["training"].get("base_model"):
        results["training"]["base_model"] = Path(start).parent.name  # the name of its run
    write_results(options.output, strip_local_paths(results))
    add_about(options.output / CARD, options.output.name)


def evaluate(options: argparse.Namespace, measured: str, *arguments: object) -> None:
    dataset, _, split = measured.rpartition(":")
    data = ("--dataset", dataset, "--split", split, *options.data_options)
    run("evaluate", options.output, *data, *arguments, "--save")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--measured", nargs="+", default=[], metavar="DATA:SPLIT")
    parser.add_argument("--refined", nargs="+", default=[], metavar="DATA:SPLIT")
    parser.add_argument("--refined-items", type=int, default=200, help="images or clips to measure with refined codes")
    parser.add_argument("--data-options", nargs=argparse.REMAINDER, default=[], help="for vpvae evaluate")
    bundle(parser.parse_args())
