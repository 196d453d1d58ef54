"""Small training runs of transformers over codes of pictures and sounds made here."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from audio_files import encoded as encoded_audio
from audio_files import write_shards as write_audio_shards
from audio_runs import ARCHITECTURE as AUDIO_ARCHITECTURE
from image_runs import ARCHITECTURE as IMAGE_ARCHITECTURE
from image_runs import VECTOR
from image_shards import encoded, write_shards
from omegaconf import OmegaConf
from safetensors.torch import load_file

import processes
from tiny import HOP, tiny_codec, tiny_vae
from vpvae_hf.cli.main import main

RECIPES = Path(__file__).parents[2] / "recipes" / "generation"


def recipe(name):
    """The module of a script, which is imported from its file."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ar, masked, diffusion = map(recipe, ("train_ar", "train_masked", "train_diffusion"))
KINDS = {"autoregressive": (ar.AutoregressiveConfig, ar.train), "masked": (masked.MaskedConfig, masked.train)}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
WINDOW = 12
# A run of six steps.
RUN = {
    "max_train_steps": 6, "train_batch_size": 4, "learning_rate": 1e-2, "lr_warmup_steps": 1, "logging_steps": 1,
    "validation_steps": 3, "checkpointing_steps": 2, "samples": 2, "report_to": [],
}  # fmt: skip

METHODS = pytest.mark.parametrize("method", list(KINDS))
MODALITIES = pytest.mark.parametrize("modality", ["images", "audio"])


def image_tokenizer(fitted=True):
    return tiny_vae(VECTOR, fitted, **IMAGE_ARCHITECTURE, sample_size=8)


def audio_tokenizer():
    return tiny_codec(VECTOR, **AUDIO_ARCHITECTURE)


def tokenize(tokenizer, data, folder, *arguments):
    """Save the tokenizer, and its codes of both splits beside it; gives the folder."""
    tokenizer.save_pretrained(folder / "tokenizer")
    for split in ("train", "validation"):
        names = ["tokenize", str(folder / "tokenizer"), "--dataset", data, "--output", str(folder / split)]
        assert main([*names, "--split", split, *arguments]) == 0
    return folder


def write_pictures(folder):
    """Pictures of 8 x 8 pixels, each of one colour and a little noise, so that their codes predict each other."""
    for split, numbers in (("train", range(60)), ("validation", range(60, 80))):
        random = np.random.default_rng(numbers.start)
        colours = 200 * random.integers(2, size=(len(numbers), 1, 1, 3))
        pictures = (colours + random.integers(50, size=(len(numbers), 8, 8, 3))).astype(np.uint8)
        write_shards(folder, [[encoded(picture) for picture in pictures]], split)
    return str(folder)


def with_column(codes, folder, name, feature, value_of):
    """A copy of folders of codes with another column, made of the labels."""
    for split in ("train", "validation"):
        shutil.copytree(codes / split, folder / split)
        for file in (folder / split / "data").glob("*.parquet"):
            rows = datasets.Dataset.from_parquet(str(file))
            values = {name: [value_of(label) for label in rows["label"]]}
            column = datasets.Dataset.from_dict(values, features=datasets.Features({name: feature}))
            datasets.concatenate_datasets([rows, column], axis=1).to_parquet(file)
    return folder


def write_clips(folder):
    """Clips of 5 to 29 codes, each at one level and with a little noise."""
    for split, numbers in (("train", range(30)), ("validation", range(30, 38))):
        random = np.random.default_rng(numbers.start)
        clips = [
            encoded_audio(0.3 * (number % 4 - 1.5) + 0.02 * random.standard_normal(HOP * codes_of_clip(number)))
            for number in numbers
        ]
        write_audio_shards(folder, [clips], split)
    return str(folder)


def codes_of_clip(number):
    return 5 + 3 * (number % 9)


def model_of(method, **changes):
    """Settings of a small model."""
    if method == "masked":
        return {"kind": "bert", **SIZES, **changes}
    return {"kind": "llama", **SIZES, "num_key_value_heads": 1, **changes}


def settings(codes, output, method="autoregressive", **changes):
    """Settings of a run of six steps, as nested dictionaries."""
    data = {"tokens": str(codes / "train"), "validation_tokens": str(codes / "validation"), **changes.pop("data", {})}
    if codes.name.startswith("audio"):
        data = {"window": WINDOW} | data
    return RUN | {"output_dir": str(output), "transformer": model_of(method), "data": data, **changes}


def launched(recipe, settings, printed):
    """A recipe with its small YAML file in a process of its own, to train with these settings and make two samples."""
    settings = {"config": RECIPES / f"{recipe}_small.yaml", "train_batch_size": 4, "samples": 2} | settings
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return processes.launched(RECIPES / f"train_{recipe}.py", words, printed)


def train(codes, output, method="autoregressive", **changes):
    config_class, run = KINDS[method]
    config = OmegaConf.structured(config_class)
    config.transformer = {}  # one kind has no use for the settings of another
    return run(OmegaConf.to_object(OmegaConf.merge(config, settings(codes, output, method, **changes))))


def weights_of(pipeline_folder):
    return load_file(pipeline_folder / "transformer" / "model.safetensors")


def same_weights(one, other):
    first, second = weights_of(one), weights_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def results_of(pipeline_folder):
    return json.loads((pipeline_folder / "results.json").read_text())
