"""`vpvae demo`, as a person runs it, for a few steps."""

import json

import numpy as np
import pytest
from PIL import Image

from vpvae_hf import AutoencoderVP, VPCodecModel
from vpvae_hf.cli.main import main


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of twelve pictures, as a data set: smooth colours with an edge."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for number in range(12):
        coarse = Image.fromarray(random.integers(256, size=(5, 6, 3), dtype=np.uint8))
        coarse.resize((300, 280), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def demo(output, photographs, *arguments):
    short = ["--dataset", str(photographs), "--steps", "6", "--codebook-size", "64"]
    return main(["demo", "--output", str(output), *short, *arguments])


@pytest.mark.parametrize("arguments", [[], ["--quantizer", "fsp"]], ids=["metropolis", "fsp"])
def test_demo(arguments, photographs, tmp_path, capsys):
    output = tmp_path / "results"
    assert demo(output, photographs, *arguments) == 0
    printed = capsys.readouterr().out
    for phrase in ("PSNR", "PSNR without quantization", "SSIM", "Code usage (CVU)", "Displacement, RMS",
                   "Quantization error it stands for", "proposals accepted", "identical codes"):  # fmt: skip
        assert phrase in printed
    assert {file.name for file in output.iterdir()} == {
        "tokenizer", "bundled.png", "reconstruction.png", "tokens.png", "training.png", "results.json"
    }  # fmt: skip
    for picture in output.glob("*.png"):
        with Image.open(picture) as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50
    results = json.loads((output / "results.json").read_text())
    assert 5 < results["held_out"]["psnr"] < 60
    assert 0 < results["held_out"]["code_usage"] <= 1
    assert AutoencoderVP.from_pretrained(output / "tokenizer").quantize.config.fitted


def test_output_is_not_overwritten_unasked(photographs, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert demo(tmp_path, photographs) == 1
    assert "exists and is not empty; use --overwrite" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    assert demo(tmp_path / "mine.txt", photographs) == 1
    assert "is a file; name a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "no/such/folder/or/hub-id"], "no/such/folder"),
        (["--quantizer", "fsp", "--codebook-size", "1"], "codebook_size=1 is too small"),
        (["--codebook-size", "1"], "codebook_size must be an integer of at least 2, got 1"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["demo", "--output", str(tmp_path / "results"), *arguments]) == 1
    printed = capsys.readouterr().err.strip().splitlines()
    assert message in printed[-1]
    assert printed[-1].startswith("vpvae demo: ")


def test_demo_of_audio(tmp_path, capsys):
    output = tmp_path / "results"
    arguments = ["demo", "--modality", "audio", "--codebook-size", "64", "--output", str(output)]
    assert main([*arguments, "--steps", "2"]) == 0
    printed = capsys.readouterr().out
    assert "PESQ" in printed
    assert len(list((output / "voices").glob("*.flac"))) == 32
    for name in ("reconstruction.png", "original.flac", "reconstruction.flac", "README.md"):
        assert str(output / "tokenizer" / name) in printed
        assert (output / "tokenizer" / name).stat().st_size > 500
    assert VPCodecModel.from_pretrained(output / "tokenizer").quantize.codebook_size == 64
    assert main(arguments) == 1
    assert "use --overwrite" in capsys.readouterr().err
    own = ["--dataset", str(output / "voices"), "--quantizer", "fsp", "--steps", "1", "--overwrite"]
    assert main([*arguments, *own]) == 0
    assert VPCodecModel.from_pretrained(output / "tokenizer").quantize.config.kind == "fsp"
