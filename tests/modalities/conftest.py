"""Tokenizers, data sets for them, and the codes that `vpvae tokenize` writes."""

from pathlib import Path

import audio_files
import audio_runs
import datasets
import image_runs
import image_shards
import numpy as np
import pytest
import torch

from tiny import tiny_codec, tiny_vae
from vpvae_hf.cli.main import main

VP = {"kind": "vp", "codebook_size": 300, "latent_dim": 2}


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A tokenizer, a data set with an unreadable image, and the folder of its codes."""
    vae = tiny_vae(VP, fitted=False, **image_runs.ARCHITECTURE, sample_size=16)
    vae.set_codebook(torch.randn(300, 2))
    random = np.random.default_rng(0)
    files = [image_shards.encoded(random.integers(256, size=(20, 30, 3), dtype=np.uint8)) for _ in range(7)]
    folder = tmp_path_factory.mktemp("images")
    shards = [[files[0], image_shards.CORRUPT, *files[1:4]], files[4:]]
    return written(folder, vae, image_shards.write_shards(folder / "data", shards))


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """The same of audio."""
    codec = tiny_codec(VP, fitted=False, **audio_runs.ARCHITECTURE, downsampling_ratios=[2, 2])
    random = np.random.default_rng(0)
    codec.set_codebook(codec.latent_vectors(torch.from_numpy(random.standard_normal(1200)).float()[None, None])[0])
    files = [audio_files.encoded(0.2 * random.standard_normal(length)) for length in (100, 41, 200, 80, 33, 199)]
    folder = tmp_path_factory.mktemp("clips")
    shards = [[files[0], audio_files.CORRUPT, *files[1:3]], files[3:]]
    return written(folder, codec, audio_files.write_shards(folder / "data", shards))


def written(folder: Path, model, data: str) -> tuple[str, str, str]:
    model.save_pretrained(folder / "tokenizer")
    tokenizer, codes = str(folder / "tokenizer"), str(folder / "codes")
    assert main(["tokenize", tokenizer, "--dataset", data, "--output", codes, "--batch-size", "3"]) == 0
    return tokenizer, data, codes


@pytest.fixture(params=["images", "clips"])
def case(request):
    """One of these, the data set's column, and the column's type that leaves files as they are."""
    kind, column = {"images": (datasets.Image, "photo"), "clips": (datasets.Audio, "sound")}[request.param]
    return (*request.getfixturevalue(request.param), column, kind(decode=False))


@pytest.fixture
def expected(case):
    """Labels and codes of the files."""
    return as_lists(datasets.load_dataset(case[2], split="train"))


@pytest.fixture
def listed():
    return as_lists


def as_lists(rows) -> list[tuple]:
    """Labels, codes and lengths of rows, in the order of the labels."""
    rows = sorted(rows, key=lambda row: row["label"])
    return [(row["label"], np.asarray(row["codes"]).tolist(), row.get("num_samples")) for row in rows]
