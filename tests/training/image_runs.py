"""Small training runs on pictures made here."""

import json
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from image_shards import encoded, write_shards
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

import processes
from vpvae_hf.modalities.image import ImageTrainingConfig

ARCHITECTURE = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
SHORT = {
    "max_train_steps": 12,
    "train_batch_size": 4,
    "learning_rate": 2e-3,
    "lr_warmup_steps": 2,
    "logging_steps": 1,
    "validation_steps": 6,
    "validation_pictures": 3,
    "checkpointing_steps": 4,
    "report_to": [],
}
VECTOR = {"kind": "vp", "codebook_size": 32, "latent_dim": 4, "queue_share": 0.1}


def write_pictures(folder: Path, *, shards: dict[str, list[int]], seed: int = 0, dark: bool = False) -> str:
    """A data set of smooth pictures, 24 x 30 pixels: images in each shard of each split."""
    random = np.random.default_rng(seed)
    for split, counts in shards.items():
        write_shards(folder, [[_png(random, dark) for _ in range(count)] for count in counts], split, column="image")
    return str(folder)


def _png(random: np.random.Generator, dark: bool) -> bytes:
    coarse = Image.fromarray(random.integers(64 if dark else 256, size=(4, 5, 3), dtype=np.uint8))
    return encoded(np.asarray(coarse.resize((30, 24), Image.Resampling.BICUBIC)))


def settings(source: str, output: Path, **changes) -> dict:
    """Settings of a run of twelve steps, as nested dictionaries."""
    data = {"name": source, "size": 16, "shortest_side": 20, "crop": "random", "flip": True, "workers": 0}
    data |= {"shuffle_buffer": 7, **changes.pop("data", {})}
    model = {"architecture": ARCHITECTURE}
    return {**SHORT, "output_dir": str(output), "model": model, "quantizer": VECTOR, "data": data, **changes}


def configured(values: dict) -> ImageTrainingConfig:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ImageTrainingConfig), values))


def metrics(output: Path) -> list[dict]:
    """Rows of metrics.jsonl without what differs between equal runs."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "examples_per_second"} for row in rows]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two files of weights are equal to the bit."""
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


RECIPE = Path(__file__).parents[2] / "recipes/image/train.py"


def read_metrics(tokenizer: Path) -> dict[str, float]:
    """Metrics of the evaluation at the end of the run that saved a tokenizer."""
    return json.loads((tokenizer / "results.json").read_text())["evaluation"][0]["metrics"]


def launched(values: dict, folder: Path, *extra: str, ranks: int = 1) -> BaseProcess:
    """The recipe in a process of its own, or in one for each rank; what it prints is in printed.txt."""
    folder.mkdir(exist_ok=True)
    (folder / "settings.yaml").write_text(json.dumps(values))
    arguments = ["--config", folder / "settings.yaml", *extra]
    return processes.launched(RECIPE, arguments, folder / "printed.txt", ranks)


def ended(process: BaseProcess, folder: Path) -> tuple[int, str]:
    """Exit status and output of a recipe that was launched with this folder."""
    return processes.ended(process, folder / "printed.txt")


def await_rows(count: int, process: BaseProcess, values: dict, folder: Path) -> None:
    """Wait until a run has logged so many rows."""
    log, deadline = Path(values["output_dir"], "metrics.jsonl"), time.monotonic() + 600
    while not log.exists() or len(log.read_text().splitlines()) < count:
        assert process.is_alive(), (folder / "printed.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
