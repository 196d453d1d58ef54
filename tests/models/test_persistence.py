"""Folders of tokenizers: what lies in them, what is refused, and saves that fail."""

import json
import subprocess
import sys

import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from transformers import modeling_utils

from tiny import FSP, MODELS, VP, noise_images, tiny_codec, tiny_vae
from vpvae_hf import AutoencoderVP, VPCodecModel

# Weights in several files.
SHARDS = {"max_shard_size": "20KB"}


@pytest.fixture
def load(model_class):
    return model_class.from_pretrained


@pytest.fixture
def folder(build, tmp_path):
    """A saved and fitted tokenizer."""
    build().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def weights(model_class, folder):
    return folder / f"{model_class._weights_file}.safetensors"


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def change_weights(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def assert_same(model, other, inputs):
    """Equal to the bit: weights, buffers and codes."""
    assert model.quantize.config == other.quantize.config
    state, others = model.state_dict(), other.state_dict()
    assert state.keys() == others.keys()
    for name, tensor in state.items():
        assert tensor.dtype == others[name].dtype, name
        assert torch.equal(tensor, others[name]), name
    assert torch.equal(model.tokenize(inputs), other.tokenize(inputs))


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shards", [{}, SHARDS], ids=["whole", "sharded"])
def test_loaded_tokenizer_is_the_saved_one_to_the_bit(build, load, inputs, shards, variant, tmp_path):
    model = build()
    model.save_pretrained(tmp_path, variant=variant, **shards)
    assert any("index" in name for name in files_of(tmp_path)) == bool(shards)
    assert any("fp16" in name for name in files_of(tmp_path)) == (variant is not None)
    assert_same(load(tmp_path, variant=variant), model, inputs)


def test_every_tensor_is_in_the_file_and_the_queue_is_not(build, folder, weights, inputs):
    model = build()
    assert load_file(weights).keys() == (dict(model.named_parameters()) | dict(model.named_buffers())).keys()
    model.train()(inputs)
    assert len(model.quantize.queue) > 0
    before = weights.read_bytes()
    model.save_pretrained(folder)
    assert weights.read_bytes() == before


def test_settings_changed_on_the_quantizer_alone_are_saved(build, load, inputs, tmp_path):
    model = build(fitted=False)
    model.quantize.set_codebook(torch.randn(20, 3))
    model.save_pretrained(tmp_path)
    assert_same(load(tmp_path), model, inputs)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("first", ["sharded", "whole"])
def test_saving_again_leaves_no_old_weights(build, load, inputs, first, variant, tmp_path):
    model = build()
    model.save_pretrained(tmp_path, variant=variant, **(SHARDS if first == "sharded" else {}))
    old = files_of(tmp_path).keys() - {"config.json", "preprocessor_config.json"}
    (tmp_path / "notes.txt").write_text("mine")
    model.set_codebook(torch.randn(40, 3))
    model.save_pretrained(tmp_path, variant=variant, **({} if first == "sharded" else SHARDS))
    assert not old & files_of(tmp_path).keys()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert_same(load(tmp_path, variant=variant), model, inputs)


def test_saving_leaves_other_variants_alone(build, load, inputs, tmp_path):
    model = build()
    model.save_pretrained(tmp_path, variant="fp16", **SHARDS)
    before = files_of(tmp_path)
    model.save_pretrained(tmp_path)
    assert files_of(tmp_path).items() >= before.items()
    for variant in (None, "fp16"):
        assert_same(load(tmp_path, variant=variant), model, inputs)


@pytest.fixture
def full_disk(monkeypatch):
    """Make writing weights fail once that many files of them have been written."""

    def fill(after):
        left = [after]

        def failing(write):
            def write_or_fail(*args, **kwargs):
                if left[0] == 0:
                    raise OSError("no space left on device")
                left[0] -= 1
                write(*args, **kwargs)

            return write_or_fail

        monkeypatch.setattr(modeling_utils, "safe_save_file", failing(modeling_utils.safe_save_file))
        monkeypatch.setattr("safetensors.torch.save_file", failing(save_file))

    return fill


@pytest.mark.parametrize("written", [0, 1])
def test_failed_save_leaves_the_old_folder_whole(build, load, inputs, folder, full_disk, written):
    before, model = files_of(folder), build()
    model.set_codebook(torch.randn(40, 3))
    full_disk(after=written)
    with pytest.raises(OSError, match="no space left"):
        model.save_pretrained(folder, **SHARDS)
    assert files_of(folder) == before
    assert [file.name for file in folder.parent.iterdir()] == ["saved"]
    assert_same(load(folder), build(), inputs)


def test_failed_first_save_leaves_nothing(build, full_disk, tmp_path):
    full_disk(after=0)
    with pytest.raises(OSError, match="no space left"):
        build().save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_saving_into_a_file_is_refused(build, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file; name a folder"):
        build().save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("key", ["quantize.codebook", "decoder"])
def test_missing_weights_are_refused(load, folder, weights, key):
    key = next(name for name in load_file(weights) if name.startswith(key))
    change_weights(weights, lambda tensors: tensors.pop(key))
    with pytest.raises(ValueError, match=rf"{folder}: the weights lack {key};.*save the model again"):
        load(folder)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_codebook_that_is_not_one_is_refused(load, folder, weights, value):
    change_weights(weights, lambda tensors: tensors["quantize.codebook"].fill_(value))
    with pytest.raises(ValueError, match=rf"{folder}: the config says that the codebook is fitted.*fit_codebook again"):
        load(folder)


@pytest.mark.parametrize("left", [0, 7, 1000, -1])
def test_damaged_weights_are_refused(load, folder, weights, left):
    weights.write_bytes(weights.read_bytes()[:left])
    with pytest.raises(ValueError, match=rf"{folder}: .*damaged or cut short.*save the model again"):
        load(folder)


def test_missing_shard_is_told_by_its_name(load, build, modality, tmp_path):
    build().save_pretrained(tmp_path, **SHARDS)
    shard = sorted(tmp_path.glob("*-of-*"))[1]
    shard.unlink()
    with pytest.raises(OSError, match=shard.name):
        load(tmp_path)


@pytest.mark.parametrize(
    "quantizer", [VP | {"codebook_size": 17, "fitted": True}, FSP | {"levels": [4, 3]}], ids=["codebook", "projection"]
)
def test_weights_of_another_config_are_refused(load, folder, quantizer):
    change_config(folder, quantizer=quantizer, latent_channels=len(quantizer.get("levels", "abc")))
    with pytest.raises(ValueError, match=rf"{folder}: weights and config do not belong together.*quant.*config\.json"):
        load(folder)


@pytest.mark.parametrize("place", ["model", "quantizer"])
def test_misspelt_fields_of_a_file_are_refused(load, folder, modality, place):
    misspelt, meant = ("codebok_size", "codebook_size") if place == "quantizer" else ("scaling_facto", "scaling_factor")
    config = json.loads((folder / "config.json").read_text())
    (config if place == "model" else config["quantizer"])[misspelt] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"unknown (config )?field '{misspelt}'.*did you mean '{meant}'"):
        load(folder)


def test_another_process_gives_the_same_codes(tmp_path):
    """Images also in half precision."""
    dtypes = {"image": (torch.float32, torch.bfloat16, torch.float16), "audio": (torch.float32,)}
    for name, (build, inputs) in MODELS.items():
        for kind, quantizer in {"vp": VP, "fsp": FSP}.items():
            build(quantizer).save_pretrained(tmp_path / name / kind)
        torch.save((inputs, dtypes[name]), tmp_path / name / "inputs.pt")
    program = """
import sys, torch, vpvae_hf
torch.set_num_threads(1)
root, codes = sys.argv[1], {}
for name, model_class in {"image": vpvae_hf.AutoencoderVP, "audio": vpvae_hf.VPCodecModel}.items():
    inputs, dtypes = torch.load(f"{root}/{name}/inputs.pt", weights_only=False)
    for key in ((name, kind, dtype) for kind in ("vp", "fsp") for dtype in dtypes):
        codes[key] = model_class.from_pretrained(f"{root}/{name}/{key[1]}", torch_dtype=key[2]).tokenize(inputs)
torch.save(codes, root + "/codes.pt")
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program, str(tmp_path)], check=True)
    there = torch.load(tmp_path / "codes.pt", weights_only=False)
    assert len(there) == 2 * (3 + 1)
    for (name, kind, dtype), codes in there.items():
        model_class = {"image": AutoencoderVP, "audio": VPCodecModel}[name]
        here = model_class.from_pretrained(tmp_path / name / kind, torch_dtype=dtype)
        assert torch.equal(here.tokenize(MODELS[name][1]), codes)


def test_default_quantizer_survives_a_round_trip():
    small = {"block_out_channels": (8,), "down_block_types": ("DownEncoderBlock2D",),
             "up_block_types": ("UpDecoderBlock2D",), "norm_num_groups": 4}  # fmt: skip
    vae = AutoencoderVP(**small)
    vae.set_codebook(torch.randn(32, 4))
    again = AutoencoderVP.from_config(vae.config)
    assert again.quantize.codebook_size == 32
    assert again.config.latent_channels == 4


# diffusers' EMAModel itself passes a path where diffusers no longer wants one.
@pytest.mark.filterwarnings("ignore:It is deprecated to pass a pretrained model name:FutureWarning")
def test_moving_average_of_weights_is_saved_and_reloaded(tmp_path):
    vae = tiny_vae(FSP)
    average = EMAModel(vae.parameters(), model_cls=AutoencoderVP, model_config=vae.config)
    average.save_pretrained(tmp_path)
    assert torch.equal(AutoencoderVP.from_pretrained(tmp_path).tokenize(noise_images()), vae.tokenize(noise_images()))
    assert EMAModel.from_pretrained(tmp_path, AutoencoderVP).decay == average.decay


def test_mismatched_codec_is_loaded_on_request_and_nothing_is_left_uninitialised(tmp_path):
    tiny_codec().save_pretrained(tmp_path)
    change_config(tmp_path, intermediate_size=32, quantizer={**VP, "codebook_size": 17, "fitted": False})
    torch.use_deterministic_algorithms(True)  # new memory is then filled with NaN
    try:
        assert torch.empty(1).isnan().all()
        model, info = VPCodecModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True, output_loading_info=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(info["mismatched_keys"]) == 9
    assert torch.equal(model.quantize.codebook, torch.zeros(17, 3))
    assert all(torch.isfinite(tensor).all() for tensor in (*model.parameters(), *model.buffers()))
