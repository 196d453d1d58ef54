"""Measure what refined codes gain and cost: metrics of a saved tokenizer's codes, and seconds, by number of steps.

    python benchmarks/refinement.py TOKENIZER --dataset NAME --name METHOD [--out benchmarks/results/refinement]

For images and audio. Seconds are processor time on one core for encoding and refinement, per item of the first batch.
The results of several tokenizers are collected in results.json, from which table.md is made. "continuous" stands for
latents that are not quantized, for comparison.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from vpvae_hf.files import read_json, write_json
from vpvae_hf.metric_labels import metric_label, sort_metrics
from vpvae_hf.modalities import Batches, load_tokenizer, modality_of
from vpvae_hf.models import Tokenizer

SHOWN = ("psnr", "ssim", "pesq", "stoi", "mel_distance", "code_usage")


def measure(options: argparse.Namespace) -> dict:
    model = load_tokenizer(options.tokenizer)
    modality = modality_of(model)
    data = modality.data_config(model, size=options.size)
    data.name, data.split, data.validation_split, data.workers = options.dataset, options.split, options.split, 0
    batches, rows = Batches(modality, model, data, batch_size=options.batch_size), {}
    timed = list(batches.evaluation(options.batch_size))
    for steps in ["continuous", 0, *options.steps]:
        if steps == "continuous":
            how, seconds = {"quantized": False}, None
        else:
            how, seconds = {"refine_steps": steps}, _seconds(model, timed, steps)
        quality = modality.evaluate(model, batches.evaluation(options.limit), unquantized=False, **how)
        rows[str(steps)] = {"seconds": seconds, "metrics": quality.metrics}
        print(steps, seconds, quality.metrics, flush=True)
    setting = {
        "quantizer": model.quantize.config.to_dict(),
        "items": quality.items,
        "split": options.split,
        "size": options.size,
    }
    return {**setting, "torch": torch.__version__, "threads": torch.get_num_threads(), "steps": rows}


def _seconds(model: Tokenizer, batches: list[Tensor], steps: int) -> float:
    """Seconds of the processor for the codes of an item."""
    started = time.process_time()
    for batch in batches:
        model.tokenize(batch, refine_steps=steps)
    return (time.process_time() - started) / sum(map(len, batches))


def table(results: dict[str, dict]) -> str:
    lines = []
    for name, result in results.items():
        names = [each for each in sort_metrics(result["steps"]["0"]["metrics"]) if each in SHOWN]
        lines += [f"## {name}: {result['items']} items of {result['split']}", ""]
        lines += ["| " + " | ".join(["steps", "seconds", *(metric_label(each).heading for each in names)]) + " |"]
        lines += ["|---" * (2 + len(names)) + "|"]
        for steps, row in result["steps"].items():
            seconds = "" if row["seconds"] is None else f"{row['seconds']:.2f}"
            metrics = [
                metric_label(each).format(row["metrics"][each]) if each in row["metrics"] else "" for each in names
            ]
            lines += ["| " + " | ".join([steps, seconds, *metrics]) + " |"]
        lines += [""]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--name", required=True, help="what the tables call the tokenizer")
    parser.add_argument("--size", type=int, help="side of images")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/refinement"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = measure(options)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.json"
    results = (read_json(file) if file.exists() else {}) | {options.name: measured}
    write_json(file, results)
    Path(options.out, "table.md").write_text("# Refined codes\n\n" + table(results))
