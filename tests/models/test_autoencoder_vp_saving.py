"""Image tokenizers in folders: what comes back, what is refused, and saves that fail."""

import json
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor

from tiny import FSP, VP, tiny_vae
from vpvae_hf import AutoencoderVP, CodebookNotFittedError


def weights_of(folder):
    return Path(folder, "diffusion_pytorch_model.safetensors")


def test_save_and_load(vae, images, tmp_path):
    vae.save_pretrained(tmp_path / "saved")
    loaded = AutoencoderVP.from_pretrained(tmp_path / "saved")
    assert not loaded.training
    assert torch.equal(loaded.tokenize(images), vae.tokenize(images))
    assert loaded.config["quantizer"] == vae.config["quantizer"]
    assert torch.equal(
        diffusers.AutoModel.from_pretrained(str(tmp_path / "saved")).tokenize(images), vae.tokenize(images)
    )
    assert AutoencoderVP.from_config(vae.config).config["quantizer"] == vae.config["quantizer"]


def test_default_quantizer_survives_a_round_trip():
    small = {"block_out_channels": (8,), "down_block_types": ("DownEncoderBlock2D",),
             "up_block_types": ("UpDecoderBlock2D",), "norm_num_groups": 4}  # fmt: skip
    vae = AutoencoderVP(**small)
    vae.set_codebook(torch.randn(32, 4))
    again = AutoencoderVP.from_config(vae.config)
    assert again.quantize.codebook_size == 32
    assert again.config.latent_channels == 4


def test_another_process_gives_the_same_codes(images, tmp_path):
    dtypes, kinds = (torch.float32, torch.bfloat16, torch.float16), {"vp": VP, "fsp": FSP}
    for name, kind in kinds.items():
        tiny_vae(kind).save_pretrained(tmp_path / name)
    torch.save(images, tmp_path / "images.pt")
    program = (
        "import sys, torch; from vpvae_hf import AutoencoderVP; torch.set_num_threads(1); folder = sys.argv[1];"
        "images = torch.load(folder + '/images.pt');"
        "dtypes = (torch.float32, torch.bfloat16, torch.float16);"
        "load = lambda name, dtype: AutoencoderVP.from_pretrained(folder + '/' + name, torch_dtype=dtype);"
        "codes = {name: [load(name, dtype).tokenize(images) for dtype in dtypes] for name in ('vp', 'fsp')};"
        "torch.save(codes, folder + '/codes.pt')"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program, str(tmp_path)], check=True)
    there = torch.load(tmp_path / "codes.pt")
    for name in kinds:
        for dtype, codes in zip(dtypes, there[name], strict=True):
            here = AutoencoderVP.from_pretrained(tmp_path / name, torch_dtype=dtype)
            assert torch.equal(here.tokenize(images), codes)


def test_image_processor_comes_with_the_model(vae, tmp_path):
    vae.save_pretrained(tmp_path / "saved")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "saved")
    photograph = Image.fromarray(np.arange(60 * 40 * 3, dtype=np.uint8).reshape(60, 40, 3))
    pixel_values = processor(photograph, return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 3, 32, 32)
    assert pixel_values.min() >= -1
    assert pixel_values.max() <= 1
    whole = processor(photograph, return_tensors="pt", do_resize=False, do_center_crop=False).pixel_values
    expected = torch.from_numpy(np.array(photograph)).movedim(-1, 0)[None] / 127.5 - 1
    torch.testing.assert_close(whole, expected)
    assert vae.tokenize(pixel_values).shape == (1, 8, 8)


def test_unfitted_model_saves_and_says_so(images, tmp_path):
    tiny_vae(fitted=False).save_pretrained(tmp_path / "saved")
    vae = AutoencoderVP.from_pretrained(tmp_path / "saved")
    with pytest.raises(CodebookNotFittedError, match="fit_codebook"):
        vae.tokenize(images)
    with pytest.raises(CodebookNotFittedError, match="force_not_quantize"):
        vae.decode(vae.encode(images).latents)
    assert vae.decode(vae.encode(images).latents, force_not_quantize=True).sample.shape == images.shape


def test_missing_codebook_is_refused(tmp_path):
    tiny_vae().save_pretrained(tmp_path)
    weights = load_file(weights_of(tmp_path))
    del weights["quantize.codebook"]
    save_file(weights, weights_of(tmp_path), metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the weights lack quantize\.codebook"):
        AutoencoderVP.from_pretrained(tmp_path)


def test_missing_weight_is_refused(tmp_path):
    tiny_vae(FSP).save_pretrained(tmp_path)
    weights = load_file(weights_of(tmp_path))
    del weights["quant_conv.weight"]
    save_file(weights, weights_of(tmp_path), metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the weights lack quant_conv\.weight"):
        AutoencoderVP.from_pretrained(tmp_path)


@pytest.mark.parametrize("shape", [(15, 3), (16, 4)])
def test_misshapen_codebook_is_refused(tmp_path, shape):
    tiny_vae().save_pretrained(tmp_path)
    weights = load_file(weights_of(tmp_path))
    weights["quantize.codebook"] = torch.randn(shape)
    save_file(weights, weights_of(tmp_path), metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights and config do not belong together.*quantize\.codebook"):
        AutoencoderVP.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_codebook_that_is_not_one_is_refused(tmp_path, value):
    tiny_vae().save_pretrained(tmp_path)
    weights = load_file(weights_of(tmp_path))
    weights["quantize.codebook"] = torch.full((16, 3), value)
    save_file(weights, weights_of(tmp_path), metadata={"format": "pt"})
    with pytest.raises(ValueError, match="says that the codebook is fitted, but"):
        AutoencoderVP.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("place", "field", "message"),
    [
        ("model", "block_out_chanels", "did you mean 'block_out_channels'"),
        ("quantizer", "codebok_size", "did you mean 'codebook_size'"),
    ],
)
def test_unknown_config_fields_are_refused(tmp_path, place, field, message):
    tiny_vae().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (config if place == "model" else config["quantizer"])[field] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        AutoencoderVP.from_pretrained(tmp_path)


def test_failed_save_leaves_the_old_folder_whole(tmp_path, monkeypatch):
    vae = tiny_vae()
    vae.save_pretrained(tmp_path / "saved")
    before = {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()}

    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    vae.set_codebook(torch.randn(40, 3))
    with pytest.raises(OSError, match="no space left"):
        vae.save_pretrained(tmp_path / "saved")
    assert {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]


def test_failed_first_save_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("safetensors.torch.save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        tiny_vae().save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


# diffusers' EMAModel itself passes a path where diffusers no longer wants one.
@pytest.mark.filterwarnings("ignore:It is deprecated to pass a pretrained model name:FutureWarning")
def test_moving_average_of_weights_is_saved_and_reloaded(images, tmp_path):
    vae = tiny_vae(FSP)
    average = EMAModel(vae.parameters(), model_cls=AutoencoderVP, model_config=vae.config)
    average.save_pretrained(tmp_path)
    assert torch.equal(AutoencoderVP.from_pretrained(tmp_path).tokenize(images), vae.tokenize(images))
    assert EMAModel.from_pretrained(tmp_path, AutoencoderVP).decay == average.decay


def test_saving_into_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        tiny_vae().save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_saving_over_shards_leaves_no_old_weights(images, tmp_path, variant):
    vae = tiny_vae()
    vae.save_pretrained(tmp_path, max_shard_size="20KB", variant=variant)
    assert any("index" in file.name for file in tmp_path.iterdir())
    (tmp_path / "notes.txt").write_text("mine")
    vae.set_codebook(torch.randn(40, 3))
    vae.save_pretrained(tmp_path, variant=variant)
    weights = "diffusion_pytorch_model.safetensors" if variant is None else "diffusion_pytorch_model.fp16.safetensors"
    kept = {"config.json", "preprocessor_config.json", "notes.txt", weights}
    assert {file.name for file in tmp_path.iterdir()} == kept
    loaded = AutoencoderVP.from_pretrained(tmp_path, variant=variant)
    assert torch.equal(loaded.tokenize(images), vae.tokenize(images))
