"""How much conditions help a saved pipeline: bits per token of codes given their own text or class, another, or none.

    python benchmarks/conditions.py PIPELINE --tokens FOLDER --column caption [--out FILE.json]

All three are measured on the same items, and for masked models with the same `--draws` maskings. Differences are
paired, with 95% bootstrap intervals over items. The other condition is that of an item drawn among those whose
condition differs; with `--by COLUMN`, among those that differ in that column, so that a text that says the same in
other words does not count as another.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from vpvae_hf.cli.generate import load_pipeline
from vpvae_hf.comparison.bootstrap import bootstrap_interval
from vpvae_hf.data import CodeFolder
from vpvae_hf.files import write_json
from vpvae_hf.generation import CausalBatches, CodePipeline, CodeSequences, causal_likelihood, masked_likelihood


def others(values: list, seed: int) -> list[int]:
    """For each item, the number of another item whose value differs."""
    random = np.random.default_rng(seed)
    return [int(random.choice([n for n, each in enumerate(values) if each != value])) for value in values]


def bits_per_token(pipeline: CodePipeline, item: dict, number: int, draws: int) -> float:
    batches, vocabulary = [CausalBatches(pipeline.vocabulary)([item])], pipeline.vocabulary
    if "scheduler" in pipeline.components:
        how = {"draws": draws, "seed": number}
        return masked_likelihood(pipeline.transformer, batches, vocabulary, **how).bits_per_token
    return causal_likelihood(pipeline.transformer, batches, vocabulary).bits_per_token


def measure(options: argparse.Namespace) -> dict:
    pipeline, folder = load_pipeline(options.pipeline), CodeFolder(options.tokens, options.column)
    sequences = CodeSequences(folder, pipeline.vocabulary, pipeline.text_tokenizer)
    items = [sequences[number] for number in range(min(options.limit or len(sequences), len(sequences)))]
    told = CodeFolder(options.tokens, options.by or options.column)
    other = others([told.condition(told.rows[number]) for number in range(len(items))], options.seed)
    changes = {"own": lambda n: items[n]["condition"], "another": lambda n: items[other[n]]["condition"]}
    changes["none"] = lambda n: -1
    bits = {
        name: np.array(
            [
                bits_per_token(pipeline, item | {"condition": condition(n)}, n, options.draws)
                for n, item in enumerate(items)
            ]
        )
        for name, condition in changes.items()
    }
    draws = options.draws if "scheduler" in pipeline.components else None
    result = {"items": len(items), "draws": draws, "torch": torch.__version__}
    result |= {"bits_per_token": {name: float(values.mean()) for name, values in bits.items()}, "more_than_own": {}}
    for name in ("another", "none"):
        difference = bits[name] - bits["own"]
        interval = bootstrap_interval(difference[None])
        share = float((difference > 0).mean())
        result["more_than_own"][name] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
        result["more_than_own"][name]["share_of_items"] = share
        print(
            f"{name}: {bits[name].mean():.3f} bits per token, own {bits['own'].mean():.3f}: {interval.mean:+.4f} "
            f"[{interval.low:.4f}, {interval.high:.4f}], more for {share:.1%} of {len(items)} items"
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder or hub id of a pipeline")
    parser.add_argument("--tokens", required=True, help="folder that `vpvae tokenize` wrote, of the validation split")
    parser.add_argument("--column", required=True, help="column that the pipeline was conditioned on")
    parser.add_argument("--by", help="column that decides which conditions differ; default: --column")
    parser.add_argument("--limit", type=int, help="measure only the first so many sequences")
    parser.add_argument("--draws", type=int, default=8, help="maskings of each sequence")
    parser.add_argument("--seed", type=int, default=0, help="seed of the other conditions")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    result = measure(options)
    if options.out is not None:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
