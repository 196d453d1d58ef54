"""The programs that README and docs print, with small models in the places that they name."""

import re
from pathlib import Path
from unittest.mock import patch

import pytest
from PIL import Image

from tiny import VP, tiny_vae
from tiny_generators import causal_pipeline, masked_pipeline
from tiny_pipelines import built
from vpvae_hf.cli.main import main
from vpvae_hf.quantizers import QUANTIZERS

ROOT = Path(__file__).parents[2]


def blocks(page):
    """The Python of a page, block by block."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


PROGRAMS = blocks(ROOT / "README.md")
# The blocks of a page of docs are one program, in their order. scale.md needs data and a cluster.
PAGES = {page.stem: "\n".join(blocks(page)) for page in sorted((ROOT / "docs").glob("*/*.md")) if blocks(page)}
FACTOR_16 = {
    "down_block_types": ("DownEncoderBlock2D",) * 5,
    "up_block_types": ("UpDecoderBlock2D",) * 5,
    "block_out_channels": (8, 8, 8, 8, 16),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which everything that the programs load has been made."""
    folder = tmp_path_factory.mktemp("reader")
    vae = tiny_vae(VP | {"latent_dim": 4}, mid_block_add_attention=False)
    for name in ("my_tokenizer", "runs/image_small/tokenizer"):
        vae.save_pretrained(folder / name)
    Image.new("RGB", (70, 50), "teal").save(folder / "photograph.jpg")
    tokenize = ["tokenize", str(folder / "my_tokenizer"), "--dataset", str(folder / "photograph.jpg")]
    assert main([*tokenize, "--size", "32", "--device", "cpu", "--output", str(folder / "codes")]) == 0
    for name, pipeline in (
        ("diffusion", built("LDM", vae)),
        ("ar", causal_pipeline(vae, grid=(8, 8))),
        ("masked", masked_pipeline(tiny_vae(**FACTOR_16), "amused", grid=(8, 8))),
    ):
        pipeline.save_pretrained(folder / "runs" / f"{name}_small" / "pipeline")
    return folder


@pytest.mark.parametrize("program", PROGRAMS, ids=["pictures", "sounds"])
def test_the_readme_can_be_followed(tmp_path, monkeypatch, program):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(program, names)
    assert names.keys() & {"images", "audio"}


# Of torch and of its exporter.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("page", PAGES)
def test_the_pages_can_be_followed(place, monkeypatch, page):
    monkeypatch.chdir(place)
    names = {}
    with patch.dict(QUANTIZERS):  # a page adds a kind
        exec(PAGES[page], names)
    assert names.keys() & {"codes", "images", "codebook", "fingerprint"}


def test_the_pages_are_found():
    assert {"first-codes", "train", "fine-tune", "generate", "publish"} <= PAGES.keys()
