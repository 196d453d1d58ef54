"""`vpvae fit` and `vpvae evaluate` on a saved folder."""

import json
from pathlib import Path

import image_shards
import pytest
import torch
from audio_files import write_files
from huggingface_hub import constants
from image_runs import ARCHITECTURE, VECTOR, write_pictures

from tiny import tiny_vae
from vpvae_hf import AutoencoderVP
from vpvae_hf.cli.inputs import data_config
from vpvae_hf.cli.main import main
from vpvae_hf.cli.parser import build_parser
from vpvae_hf.data import ImageCrop, ItemLoader, ItemStream, open_images
from vpvae_hf.losses import feature_distance_per_image, pooled_features
from vpvae_hf.metrics import evaluate_reconstruction, feature_moments, frechet_distance, image_quality
from vpvae_hf.modalities import Batches, modality_of
from vpvae_hf.modalities.config import DataConfig


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
    # Refined codes are measured in addition to nearest ones.
    assert main(["evaluate", str(fitted), "--dataset", data, "--save", "--refine", "2"]) == 0
    assert "tokens, codes refined in 2 steps" in capsys.readouterr().out
    _, refined = json.loads((fitted / "results.json").read_text())["evaluation"]
    assert refined["refine_steps"] == 2
    assert refined["metrics"]["psnr"] > figures["psnr"]
    assert "| validation, codes refined in 2 steps |" in (fitted / "README.md").read_text()
    # A part of the split is listed in addition to the whole split.
    assert main(["evaluate", str(fitted), "--dataset", data, "--save", "--limit", "4"]) == 0
    *_, part = json.loads((fitted / "results.json").read_text())["evaluation"]
    assert (part["images"], part["limit"]) == (4, 4)
    assert "| validation, the first 4 | 4 |" in (fitted / "README.md").read_text()
    # Measuring the same again replaces the first measurement; a refit makes all measurements void.
    assert main(["evaluate", str(fitted), "--dataset", data, "--save", "--size", "8"]) == 0
    _, _, again = json.loads((fitted / "results.json").read_text())["evaluation"]
    assert again["tokens"] == 9 * 16
    again = ["fit", str(fitted), "--dataset", data, "--output", str(fitted), "--overwrite", "--metric", "decoder"]
    assert main(again) == 0
    assert AutoencoderVP.from_pretrained(fitted).quantize.config.metric == "decoder"
    assert "| Metric of the errors, and of nearest codes | decoder |" in (fitted / "README.md").read_text()
    results = json.loads((fitted / "results.json").read_text())
    assert results["evaluation"] == []
    assert results["codebook"]["codebook_size"] == 48


def test_the_distance_of_a_network_s_features(tmp_path, data, capsys):
    vae = tiny_vae()
    vae.save_pretrained(tmp_path / "tokenizer")
    how = ["--dataset", data, "--size", "32", "--features", "efficientnet-lite0", "--frechet", "efficientnet-lite0"]
    how += ["--batch-size", "4", "--save"]
    assert main(["evaluate", str(tmp_path / "tokenizer"), *how]) == 0
    (saved,) = json.loads((tmp_path / "tokenizer" / "results.json").read_text())["evaluation"]
    stream = ItemStream(open_images(data, split="validation"), ImageCrop(size=32, shortest_side=32))
    (batch,) = ItemLoader(stream, batch_size=9)
    expected = feature_distance_per_image(vae.detokenize(vae.tokenize(batch)).clamp(-1, 1), batch).mean()
    assert saved["metrics"]["features/efficientnet-lite0"] == pytest.approx(float(expected), rel=1e-4)
    decoded = vae.detokenize(vae.tokenize(batch)).clamp(-1, 1)
    distance = frechet_distance(*(feature_moments(pooled_features(images)) for images in (decoded, batch)))
    assert distance > 1
    assert saved["metrics"]["frechet/efficientnet-lite0"] == pytest.approx(distance, rel=1e-3)
    assert "Feature distance (efficientnet-lite0)" in capsys.readouterr().out
    assert "| Feature distance (efficientnet-lite0) |" in (tmp_path / "tokenizer" / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:fitting .* per code:UserWarning")
def test_nested_codebooks(tokenizer, data, tmp_path, capsys):
    fit = ["fit", str(tokenizer), "--dataset", data, "--output", str(tmp_path / "fitted"), "--latents-per-code", "64"]
    assert main([*fit, "--nested", "--codebook-size", "48", "9"]) == 1
    assert "several sizes, each a multiple of the next smaller one" in capsys.readouterr().err
    assert main([*fit, "--nested", "--codebook-size", "48", "8"]) == 0
    vae = AutoencoderVP.from_pretrained(tmp_path / "fitted")
    assert vae.coarser_codes(torch.arange(48), 8).tolist() == [code // 6 for code in range(48)]


@pytest.mark.filterwarnings("ignore:fitting .* per code:UserWarning")
def test_several_codebooks(tokenizer, data, tmp_path, capsys):
    fitted = tmp_path / "fitted"
    sizes = ["--codebook-size", "48", "8", "--latents-per-code", "64"]
    assert main(["fit", str(tokenizer), "--dataset", data, "--output", str(fitted), *sizes]) == 0
    printed = capsys.readouterr().out
    assert "48 codes fitted to 3072 latents" in printed
    assert "\n8 codes fitted to 3072 latents" in printed
    results = json.loads((fitted / "results.json").read_text())
    assert [each["codebook_size"] for each in (results["codebook"], *results["codebook"]["others"])] == [48, 8]
    card = (fitted / "README.md").read_text()
    assert "| Codes | 48 | 8 |" in card
    assert "| Other codebooks' sizes, for `from_pretrained(name, codebook_size=K)` | 8 |" in card
    for size, others in (("8", 0), ("48", 1), ("8", 1)):  # measured again, in place of the first
        assert main(["evaluate", str(fitted), "--dataset", data, "--save", "--codebook-size", size]) == 0
        recorded = json.loads((fitted / "results.json").read_text())["evaluation"]
        assert len(recorded) == 1 + others
        assert recorded[-1]["codebook_size"] == int(size)
    by_size = {each["codebook_size"]: each["metrics"]["psnr"] for each in recorded}
    assert by_size[48] != by_size[8]
    card = (fitted / "README.md").read_text()
    assert "| validation, K = 8 |" in card
    assert "| validation, K = 48 |" in card
    assert "name: PSNR, dB (K = 8)" in card
    assert main(["evaluate", str(fitted), "--dataset", data, "--codebook-size", "9"]) == 1
    assert "there is no codebook of 9 codes; there are: 8, 48" in capsys.readouterr().err


@pytest.fixture
def flat(tmp_path):
    """A folder of 30 images without splits."""
    return write_files(tmp_path / "flat", {f"{number}.png": image_shards.file(number) for number in range(30)})


def images_of(command: str, model, data: str, *options: str) -> list[int]:
    """The images that a command would read."""
    output = [] if command == "evaluate" else ["--output", "unused"]
    arguments = build_parser().parse_args([command, "unused", "--dataset", data, *output, *options])
    batches = Batches(modality_of(model), model, data_config(arguments, model), batch_size=8)
    read = batches.evaluation() if command == "evaluate" else batches.fitting(0, once=True)
    return sorted(image_shards.numbers_of(read))


def test_what_is_measured_of_a_folder_without_splits_is_not_fitted_to(flat, monkeypatch):
    model, everything = tiny_vae(), list(range(30))
    measured = images_of("evaluate", model, flat)
    assert 0 < len(measured) < 10
    assert sorted(measured + images_of("fit", model, flat)) == everything
    for share in ("0.5", "0.01"):
        parts = [images_of(command, model, flat, "--validation-share", share) for command in ("evaluate", "fit")]
        assert sorted(parts[0] + parts[1]) == everything
        assert (len(parts[0]) > len(measured)) == (share == "0.5")
    monkeypatch.chdir(flat)
    assert images_of("evaluate", model, ".") == measured
    assert images_of("tokenize", model, flat) == everything
    for command in ("evaluate", "fit"):
        assert images_of(command, model, flat, "--split", "train") == everything
    with pytest.raises(ValueError, match=r"no split 'validation'; it has train. .*; of local files --validation-share"):
        images_of("evaluate", model, flat, "--validation-share", "0")


def test_a_share_without_a_file_that_can_be_read(tokenizer, tmp_path, capsys):
    name = write_files(tmp_path / "photos", {f"{number}.png": image_shards.CORRUPT for number in range(2)})
    assert main(["evaluate", str(tokenizer), "--dataset", name]) == 1
    assert capsys.readouterr().err.strip().endswith("; a larger validation_share sets more files aside")


def test_evaluations_of_one_folder_by_other_names(flat, tokenizer, monkeypatch, capsys):
    vae = AutoencoderVP.from_pretrained(tokenizer)
    vae.set_codebook(torch.randn(8, vae.quantize.latent_dim))
    vae.save_pretrained(tokenizer)
    monkeypatch.chdir(Path(flat).parent)
    monkeypatch.setenv("HOME", str(Path(flat).parent))
    for data, name in ((flat, "tokenizer/"), ("flat/", "~/tokenizer"), ("~/flat", "./tokenizer")):
        assert main(["evaluate", name, "--dataset", data, "--save"]) == 0
    (saved,) = json.loads((tokenizer / "results.json").read_text())["evaluation"]
    assert f"Evaluating: {saved['images']}/{saved['images']} (100%)" in capsys.readouterr().err
    assert main(["evaluate", "tokenizer", "--dataset", "flat", "--limit", "1"]) == 0
    assert "Evaluating: 1/1 (100%)" in capsys.readouterr().err
    assert main(["evaluate", "tokenizer/config.json", "--dataset", "flat"]) == 1
    assert "it has no config.json; name its folder, tokenizer" in capsys.readouterr().err
    assert main(["evaluate", "./tokenizr", "--dataset", "flat"]) == 1
    assert "there is no file or folder ./tokenizr; did you mean tokenizer?" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["evaluate", "tokenizr", "--dataset", "flat"]) == 1
    assert "Or did you mean tokenizer, which is on this computer?" in capsys.readouterr().err


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


@pytest.mark.parametrize("command", ["evaluate", "fit"])
def test_help_states_the_share_that_is_set_aside(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    share = DataConfig().validation_share
    assert f"default: {share}" in " ".join(capsys.readouterr().out.split())
