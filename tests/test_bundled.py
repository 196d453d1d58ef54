"""The tokenizers that come with the package."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from skimage import data
from speech import speech

from vpvae_hf import AutoencoderVP, VPCodecModel, bundled_tokenizer, bundled_tokenizers
from vpvae_hf.cli.main import main
from vpvae_hf.data import read_codes
from vpvae_hf.metrics import image_quality, stoi_score
from vpvae_hf.modalities import load_tokenizer
from vpvae_hf.pixels import center_crop, scaled, to_pixel_values

CLASSES = {"image": AutoencoderVP, "speech": VPCodecModel}


def photographs():
    pictures = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    return to_pixel_values(np.stack([center_crop(scaled(picture, 128), 128, 128) for picture in pictures]))


def test_all_are_there_small_and_whole():
    assert bundled_tokenizers() == [*CLASSES]
    folders = [bundled_tokenizer(name) for name in CLASSES]
    assert sum(file.stat().st_size for folder in folders for file in folder.rglob("*")) < 30e6
    for (name, model_class), folder in zip(CLASSES.items(), folders, strict=True):
        model = model_class.from_pretrained(folder)
        assert sum(weight.numel() for weight in model.parameters()) <= 6e6
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        assert {256, 1024, 4096} <= {*model.codebook_sizes}
        assert load_tokenizer(name).fingerprint() == model.fingerprint()
        card = (folder / "README.md").read_text()
        assert f'bundled_tokenizer("{name}")' in card
        assert "## Data" in card
        assert "## What it cannot do" in card
        assert card.count("| images_128 |" if name == "image" else "| speech_16k |") >= 4
    with pytest.raises(ValueError, match="no tokenizer 'imge' comes with the package; did you mean 'image'"):
        bundled_tokenizer("imge")


def test_more_codes_keep_more_of_a_photograph():
    model, images = AutoencoderVP.from_pretrained(bundled_tokenizer("image")).eval(), photographs()
    found = []
    for size in model.codebook_sizes:
        model.select_codebook(size)
        found.append(float(image_quality(model.detokenize(model.tokenize(images)), images)["psnr"].mean()))
    assert found == sorted(found)
    assert found[-1] > 20
    refined = image_quality(model.detokenize(model.tokenize(images, refine_steps=4)), images)["psnr"]
    assert float(refined.mean()) > found[-1]


def test_speech_stays_intelligible():
    model, clip = VPCodecModel.from_pretrained(bundled_tokenizer("speech")).eval(), speech(2.0)[None, None]
    made = model.detokenize(model.tokenize(clip))[..., : clip.shape[-1]]
    assert float(stoi_score(made, clip, 16000)) > 0.5


# A process without a network: whatever opens a connection fails.
FIRST_CODES = """
import socket, sys
def refuse(*_): raise OSError("no network here")
socket.socket.connect = socket.create_connection = refuse
from vpvae_hf.cli.main import main
sys.exit(main(["encode", *sys.argv[1:]]) or main(["decode", sys.argv[1].rsplit(".", 1)[0] + ".safetensors"]))
"""


@pytest.mark.parametrize("name", CLASSES)
def test_the_first_codes_need_no_network_and_no_options(name, tmp_path, monkeypatch):
    if name == "image":
        own, decoded = tmp_path / "own.jpg", tmp_path / "own.decoded.png"
        Image.fromarray(data.rocket()).save(own)
    else:
        own, decoded = tmp_path / "own.wav", tmp_path / "own.decoded.wav"
        soundfile.write(own, speech(1.0).numpy(), 16000)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    finished = subprocess.run(
        [sys.executable, "-c", FIRST_CODES, str(own)], capture_output=True, text=True, timeout=600
    )
    assert finished.returncode == 0, finished.stderr
    assert decoded.exists()
    _, header = read_codes(tmp_path / "own.safetensors")
    assert header["tokenizer"] == name


def test_a_path_goes_before_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("image").mkdir()
    Image.fromarray(data.rocket()[:64, :64]).save("own.png")
    assert main(["encode", "own.png", "--tokenizer", "image"]) == 1
    assert "has no config.json" in capsys.readouterr().err
