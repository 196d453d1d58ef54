"""`vpvae fit` and `vpvae evaluate` on a saved folder."""

import json

import pytest
import torch
from image_runs import ARCHITECTURE, VECTOR, write_pictures

from vpvae_hf import AutoencoderVP
from vpvae_hf.cli.main import main
from vpvae_hf.data import ImageCrop, ItemLoader, ItemStream, open_images
from vpvae_hf.metrics import evaluate_reconstruction, image_quality


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), shards={"train": [20, 13], "validation": [9]})


@pytest.fixture
def tokenizer(tmp_path):
    torch.manual_seed(0)
    AutoencoderVP(**ARCHITECTURE, sample_size=16, quantizer=VECTOR).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_fit_then_evaluate(tokenizer, data, tmp_path, capsys):
    fitted = tmp_path / "fitted"
    arguments = ["fit", str(tokenizer), "--dataset", data, "--codebook-size", "48", "--output", str(fitted)]
    assert main(arguments) == 0
    assert "48 codes fitted to 12288 latents" in capsys.readouterr().out
    vae = AutoencoderVP.from_pretrained(fitted)
    assert (vae.quantize.codebook_size, vae.quantize.config.fitted) == (48, True)
    assert main(["evaluate", str(fitted), "--dataset", data, "--save"]) == 0
    printed = capsys.readouterr().out
    stream = ItemStream(open_images(data, split="validation"), ImageCrop(size=16, shortest_side=16))
    batches = ItemLoader(stream, batch_size=9)
    figures = evaluate_reconstruction(vae, batches, metric_fn=image_quality, unquantized=("psnr",)).metrics
    assert f"{figures['psnr']:.2f} dB ({figures['psnr_unquantized']:.2f} dB without quantization)" in printed
    (saved,) = json.loads((fitted / "results.json").read_text())["evaluation"]
    assert saved["images"] == 9
    assert saved["metrics"] == pytest.approx(figures, rel=1e-6)
    # A second measurement of the same split takes the first one's place; a refit makes both void.
    assert main(["evaluate", str(fitted), "--dataset", data, "--save", "--size", "8"]) == 0
    (again,) = json.loads((fitted / "results.json").read_text())["evaluation"]
    assert again["tokens"] == 9 * 16
    assert main(["fit", str(fitted), "--dataset", data, "--output", str(fitted), "--overwrite"]) == 0
    results = json.loads((fitted / "results.json").read_text())
    assert results["evaluation"] == []
    assert results["codebook"]["codebook_size"] == 48


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "{tokenizer}", "--dataset", "{data}", "--output", "{tokenizer}"], "exists and is not empty"),
        (["fit", "{new}", "--dataset", "{data}", "--output", "{new}"], "new"),
        (["evaluate", "{tokenizer}", "--dataset", "{data}"], "no fitted codebook"),
        (["evaluate", "{tokenizer}", "--dataset", "{new}"], "new"),
        (["evaluate", "someone/else", "--dataset", "{data}", "--save"], "--save needs a local folder"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tokenizer, data, tmp_path, capsys):
    names = {"tokenizer": tokenizer, "data": data, "new": tmp_path / "new"}
    assert main([argument.format(**names) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "new").exists()
