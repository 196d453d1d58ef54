"""Compare speed with the alternatives. Writes tables in Markdown and JSON; see `make bench`."""

import argparse
from pathlib import Path

import audio
import clustering
import encoding
import perturbing
import search
import torch
from measuring import DIMENSIONS, write
from tqdm.auto import tqdm

import generation
import training

_COMPARISONS = {
    "search": search.compare,
    "encoding": encoding.compare,
    "clustering": clustering.compare,
    "perturbing": perturbing.compare,
    "training": training.compare,
    "audio": audio.compare,
    "generation": generation.compare,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=_COMPARISONS, default=list(_COMPARISONS))
    parser.add_argument("--sizes", nargs="+", type=int, choices=DIMENSIONS, default=list(DIMENSIONS))
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is run; the median counts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    tables = []
    for name in tqdm(arguments.only, desc="Comparisons"):
        tables += _COMPARISONS[name](arguments.sizes, arguments.rounds, device)
        write(tables, arguments.output, device)
    print(f"Tables: {arguments.output / device.type}.md and .json")


if __name__ == "__main__":
    main()
