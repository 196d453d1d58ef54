"""Folders of tokenizers: what lies in them, what is refused, and saves that fail."""

import copy
import io
import json
import os
import shutil
import stat

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from transformers import modeling_utils

from processes import ended, launched
from tiny import FSP, MODELS, QUANTIZER_SETTINGS, VP, noise_images, tiny_codec, tiny_vae
from tiny_generators import causal_pipeline
from vpvae_hf import AutoencoderVP, CodebookNotFittedError, VPCodecModel
from vpvae_hf.files import write_atomically
from vpvae_hf.hub import write_card
from vpvae_hf.quantizers import quantizer_config

# Weights in several files.
SHARDS = {"max_shard_size": "20KB"}


@pytest.fixture
def load(model_class):
    return model_class.from_pretrained


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    for modality, (build, _) in MODELS.items():
        build().save_pretrained(root / modality)
    return root


@pytest.fixture
def folder(saved_once, modality, tmp_path):
    """A saved and fitted tokenizer."""
    return shutil.copytree(saved_once / modality, tmp_path / "saved")


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
    with pytest.raises(
        ValueError, match=rf"{folder}: the config says that .* should hold fitted values.*fit_codebook again"
    ):
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
root, codes = sys.argv[1], {}
for name, model_class in {"image": vpvae_hf.AutoencoderVP, "audio": vpvae_hf.VPCodecModel}.items():
    inputs, dtypes = torch.load(f"{root}/{name}/inputs.pt", weights_only=False)
    for key in ((name, kind, dtype) for kind in ("vp", "fsp") for dtype in dtypes):
        codes[key] = model_class.from_pretrained(f"{root}/{name}/{key[1]}", torch_dtype=key[2]).tokenize(inputs)
torch.save(codes, root + "/codes.pt")
"""
    script, printed = tmp_path / "program.py", tmp_path / "printed.txt"
    script.write_text(program)
    status, output = ended(launched(script, [tmp_path], printed), printed)
    assert status == 0, output
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


class Owner(nn.Module):
    """As a training framework holds a model: in a module of its own, so that names have a prefix."""

    def __init__(self, model):
        super().__init__()
        self.vae, self.head = model, nn.Linear(2, 2)


def plain(model, new, folder):
    new.load_state_dict(model.state_dict())
    return new


def not_strict(model, new, folder):
    weights = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("quantize")}
    new.load_state_dict(weights, strict=False)
    return new


def assigned(model, new, folder):
    new = new.to("meta")
    new.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    return new


def of_half_precision(model, new, folder):
    weights = {name: tensor.half() for name, tensor in model.state_dict().items() if "codebook" in name}
    new.load_state_dict(weights, strict=False, assign=True)
    return new


def within_inference_mode(model, new, folder):
    with torch.inference_mode():
        new.load_state_dict(model.state_dict())
    new.load_state_dict(model.state_dict())
    return new


def by_an_owner(model, new, folder):
    torch.save({"state_dict": Owner(model).state_dict()}, folder / "last.ckpt")
    Owner(new).load_state_dict(torch.load(folder / "last.ckpt")["state_dict"])
    return new


def whole(model, new, folder):
    pickled = io.BytesIO()
    torch.save(model, pickled)
    return torch.load(io.BytesIO(pickled.getvalue()), weights_only=False)


def into_a_copy(model, new, folder):
    return plain(model, copy.deepcopy(new), folder)


def by_safetensors(model, new, folder):
    save_model(model, folder / "model.safetensors")
    load_model(new, folder / "model.safetensors")
    return new


def by_accelerate(model, new, folder):
    accelerator = Accelerator()
    accelerator.prepare(model)
    accelerator.save_state(folder)
    accelerator = Accelerator()
    new = accelerator.prepare(new)
    accelerator.load_state(folder)
    return new


WAYS = [plain, not_strict, assigned, of_half_precision, within_inference_mode, by_an_owner, whole, into_a_copy]


@pytest.mark.parametrize(
    ("make", "carry"),
    [*((tiny_vae, way) for way in (*WAYS, by_safetensors, by_accelerate)), (tiny_codec, plain), (tiny_codec, whole)],
    ids=lambda part: part.__name__,
)
def test_a_state_dict_brings_its_codebook(make, carry, tmp_path):
    """A codebook of any K, which the config follows; it decides the codes, whatever else was loaded."""
    model = make()
    model.set_codebook(torch.randn(40, 3).half().float())
    loaded = carry(model, make(fitted=False), tmp_path)
    assert torch.equal(loaded.quantize.codebook, model.quantize.codebook)
    assert loaded.quantize.codebook.dtype == torch.float32
    assert loaded.config.quantizer == model.config.quantizer
    latents = torch.randn(50, 3)
    assert torch.equal(loaded.quantize.encode(latents), model.quantize.encode(latents))


@pytest.mark.parametrize("carry", [plain, not_strict, assigned, within_inference_mode])
@pytest.mark.parametrize("variant", ["vp-1", "simvq-1", "fsq-2"])
def test_a_state_dict_brings_what_was_fitted(variant, carry, tmp_path):
    """A metric, a codebook in place of the learned one, or levels; a state dict without them removes them again."""
    fitted = QUANTIZER_SETTINGS[variant]
    bare = quantizer_config(fitted).without_fit().to_dict()
    model, new, latents = tiny_vae(fitted), tiny_vae(bare, fitted=False), torch.rand(50, 3)
    without = copy.deepcopy(new.state_dict())
    loaded = carry(model, new, tmp_path)
    assert loaded.config.quantizer == model.config.quantizer
    assert torch.equal(loaded.quantize.encode(latents), model.quantize.encode(latents))
    if any(key.startswith("quantize.") for key in without):
        loaded.load_state_dict(without)
        assert loaded.config.quantizer == bare
    else:
        with pytest.raises(RuntimeError, match=r"Missing key.*quantize\.level_values"):
            loaded.load_state_dict(without)


def test_a_codebook_that_was_copied_by_hand_is_not_lost(build, load, inputs, tmp_path):
    """Training loops keep averages of weights in this way."""
    model, copied = build(), build(fitted=False)
    for own, weights in zip(copied.state_dict().values(), model.state_dict().values(), strict=True):
        own.copy_(weights)
    with pytest.raises(CodebookNotFittedError, match=r"holds values.*call model.set_codebook"):
        copied.tokenize(inputs)
    copied.save_pretrained(tmp_path)
    assert_same(load(tmp_path), model, inputs)


def test_a_state_dict_without_a_fitted_codebook_leaves_none(build, inputs):
    model = build()
    model.load_state_dict(build(fitted=False, quantizer=VP | {"codebook_size": 24}).state_dict())
    assert (model.config.quantizer["fitted"], model.config.quantizer["codebook_size"]) == (False, 24)
    with pytest.raises(CodebookNotFittedError):
        model.tokenize(inputs)


@pytest.mark.parametrize(
    ("codebook", "message"),
    [
        (torch.full((16, 3), torch.nan), "cannot be used: it holds NaN or infinite values"),
        (torch.randn(1, 3), "cannot be used: codebook_size must be an integer of at least 2, got 1"),
        (torch.randn(16, 4), "size mismatch for quantize.codebook"),
    ],
)
def test_a_state_dict_with_another_thing_in_place_of_a_codebook(codebook, message):
    vae = tiny_vae()
    with pytest.raises(RuntimeError, match=message):
        vae.load_state_dict(vae.state_dict() | {"quantize.codebook": codebook})


# diffusers' EMAModel itself passes a path where diffusers no longer wants one.
@pytest.mark.filterwarnings("ignore:It is deprecated to pass a pretrained model name:FutureWarning")
@pytest.mark.parametrize("quantizer", [FSP, VP], ids=["fsp", "vp"])
def test_moving_average_of_weights_is_saved_and_reloaded(quantizer, tmp_path, caplog):
    """It averages parameters alone, so it holds no fitted codebook, and what it saves does not claim to hold one."""
    vae = tiny_vae(quantizer)
    average = EMAModel(vae.parameters(), model_cls=AutoencoderVP, model_config=vae.config)
    average.save_pretrained(tmp_path)
    saved = AutoencoderVP.from_pretrained(tmp_path)
    assert saved.quantize.config.fitted == (quantizer is FSP) == ("is saved as not fitted" not in caplog.text)
    resumed = EMAModel.from_pretrained(tmp_path, AutoencoderVP)
    assert resumed.decay == average.decay
    resumed.save_pretrained(tmp_path / "again")
    assert AutoencoderVP.from_pretrained(tmp_path / "again").quantize.config == saved.quantize.config
    resumed.copy_to(vae.parameters())
    saved.load_state_dict(vae.state_dict())
    assert_same(saved, tiny_vae(quantizer), noise_images())


@pytest.mark.parametrize(
    "quantizer",
    [{"kind": "simvq"}, {"kind": "vq", "update": "ema"}, {"kind": "vq"}],
    ids=lambda settings: "-".join(settings.values()),
)
def test_moving_average_without_the_codebook_is_refused(quantizer, tmp_path):
    vae = tiny_vae(quantizer | {"codebook_size": 16, "latent_dim": 3})
    average = EMAModel(vae.parameters(), model_cls=AutoencoderVP, model_config=vae.config)
    if quantizer == {"kind": "vq"}:
        average.save_pretrained(tmp_path)
        saved, images = AutoencoderVP.from_pretrained(tmp_path), noise_images()
        assert torch.equal(saved.tokenize(images), vae.tokenize(images))
        return
    with pytest.raises(ValueError, match=r"keeps only parameters, and the codebook .* save the EMAModel's state_dict"):
        average.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=oct)
def test_files_have_the_mode_that_the_umask_says(umask, tmp_path):
    before = os.umask(umask)
    try:
        tiny_vae().save_pretrained(tmp_path / "shards", **SHARDS)
        write_card(tmp_path / "shards")
        causal_pipeline(tiny_codec()).save_pretrained(tmp_path / "pipeline")
        with write_atomically(tmp_path / "codes" / "codes.safetensors") as aside:
            save_file({"codes": torch.zeros(3)}, aside)
    finally:
        os.umask(before)
    written = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert len(written) > 15
    assert written == {path: (0o777 if path.is_dir() else 0o666) & ~umask for path in written}


@pytest.mark.parametrize(
    "arguments",
    [
        {"low_cpu_mem_usage": False},
        {"device_map": "auto"},
        {"use_safetensors": True, "local_files_only": True, "subfolder": "", "dtype": "float32"},
    ],
    ids=str,
)
def test_arguments_of_the_libraries_change_no_code(build, load, inputs, folder, arguments):
    assert_same(load(folder, **arguments), build(), inputs)


def test_a_dtype_is_given_by_its_name(load, folder, modality):
    for given in ({"torch_dtype": "bfloat16"}, {"dtype": "torch.bfloat16"}):
        loaded = load(folder, **given)
        assert (loaded.dtype, loaded.quantize.codebook.dtype) == (torch.bfloat16, torch.float32)
    for wrong in ("fp16", torch.int8):
        with pytest.raises(ValueError, match="torch_dtype must be a floating point dtype or its name, such as"):
            load(folder, torch_dtype=wrong)


def test_a_sub_folder_comes_before_the_folder_around_it(build, load, inputs, folder):
    inner = build()
    inner.set_codebook(inner.quantize.codebook.flip(0))
    inner.save_pretrained(folder / "vae")
    assert_same(load(folder, subfolder="vae"), inner, inputs)


def test_misspelt_arguments_are_refused(load, folder):
    with pytest.raises(TypeError, match="varient"):
        load(folder, varient="fp16")


def unlinked(folder):
    for file in folder.glob("*.safetensors"):
        file.unlink()


def as_pointers(folder):
    for file in folder.glob("*.safetensors"):
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")


def as_variant(folder):
    for file in folder.glob("*.safetensors"):
        file.rename(file.with_suffix(".bf16.safetensors"))


def as_adapter(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")


def as_checkpoint(folder):
    (folder / "config.json").rename(folder / "random_states_0.pkl")


def one_deeper(folder):
    (folder / "vae").mkdir()
    for file in list(folder.glob("*.*")):
        file.rename(folder / "vae" / file.name)


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("change", "arguments", "error", "message"),
    [
        (None, {"variant": "fp16"}, FileNotFoundError, r"no weights of variant='fp16'; .*: .*\(leave variant out\)"),
        (as_variant, {}, FileNotFoundError, "no weights without a variant; there are weights: variant='bf16'"),
        (
            None,
            {"use_safetensors": False},
            FileNotFoundError,
            "no weights as .bin, which use_safetensors=False requires",
        ),
        (unlinked, {}, FileNotFoundError, "has a config.json but no weights"),
        (
            as_pointers,
            {},
            FileNotFoundError,
            "cloned without its weights: .* is a pointer of git-lfs; run `git lfs pull`",
        ),
        (as_adapter, {}, ValueError, "holds an adapter of PEFT; load the tokenizer that it was trained on"),
        (as_checkpoint, {}, ValueError, "is a checkpoint of training.*--resume_from_checkpoint"),
        (one_deeper, {}, FileNotFoundError, "its sub-folder vae holds a tokenizer: give subfolder='vae'"),
        (emptied, {}, FileNotFoundError, "holds no saved tokenizer: no config.json is found in it, but no files"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_missing_in_a_folder_is_told(load, folder, change, arguments, error, message):
    if change is not None:
        change(folder)
    with pytest.raises(error, match=message):
        load(folder, **arguments)


@pytest.fixture(scope="module")
def other_things(tmp_path_factory):
    """Folders and files that are no tokenizer, or hold one as a part of a pipeline."""
    root = tmp_path_factory.mktemp("others")
    for name, (build, _) in MODELS.items():
        build().save_pretrained(root / name)
        causal_pipeline(build()).save_pretrained(root / f"{name} pipeline")
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(root / "kl")
    shutil.copytree(root / "kl", root / "diffusion" / "vae")
    (root / "diffusion" / "model_index.json").write_text('{"_class_name": "P", "vae": ["diffusers", "AutoencoderKL"]}')
    (root / "encodec").mkdir()
    (root / "encodec" / "config.json").write_text('{"model_type": "encodec", "architectures": ["EncodecModel"]}')
    for name in ("weights.pt", "model.gguf"):
        (root / name).write_bytes(b"GGUF")
    return root


@pytest.mark.parametrize(
    ("model_class", "name", "message"),
    [
        (
            AutoencoderVP,
            "audio",
            "holds an audio tokenizer; load it with VPCodecModel.from_pretrained, not AutoencoderVP",
        ),
        (
            VPCodecModel,
            "image",
            "holds an image tokenizer; load it with AutoencoderVP.from_pretrained, not VPCodecModel",
        ),
        (
            AutoencoderVP,
            "image pipeline",
            r"VPAutoregressivePipeline; .* AutoencoderVP.*\(..., subfolder='tokenizer'\)",
        ),
        (VPCodecModel, "audio pipeline", r"VPAutoregressivePipeline; .* VPCodecModel.*\(..., subfolder='tokenizer'\)"),
        (VPCodecModel, "diffusion", "of class P, in which there is no tokenizer of this package"),
        (AutoencoderVP, "diffusion", r"AutoencoderVP.from_autoencoder_kl\(..., subfolder='vae'\) starts a tokenizer"),
        (AutoencoderVP, "kl", "class AutoencoderKL, .*AutoencoderVP.from_autoencoder_kl starts a tokenizer from it"),
        (VPCodecModel, "kl", "class AutoencoderKL, .*; load it with the library that saved it"),
        (AutoencoderVP, "encodec", "class EncodecModel, no tokenizer of this package"),
        (VPCodecModel, "encodec", "class EncodecModel, no tokenizer of this package"),
        (
            AutoencoderVP,
            "weights.pt",
            "is a file, and AutoencoderVP.from_pretrained takes the folder .*load_state_dict",
        ),
        (VPCodecModel, "model.gguf", "is a file, .*; GGUF files are of language models"),
        (VPCodecModel, "audio/model.safetensors", r"is a file, .*; name .*audio$"),
    ],
)
def test_another_thing_is_told_from_a_tokenizer(other_things, model_class, name, message):
    with pytest.raises(ValueError, match=message):
        model_class.from_pretrained(other_things / name)


def test_mismatched_images_are_loaded_on_request(tmp_path):
    tiny_vae().save_pretrained(tmp_path)
    change_config(tmp_path, out_channels=1, quantizer={**VP, "codebook_size": 17, "fitted": True})
    vae = AutoencoderVP.from_pretrained(tmp_path, ignore_mismatched_sizes=True, low_cpu_mem_usage=False)
    assert vae.config.quantizer == vae.quantize.config.to_dict()
    assert (vae.quantize.config.fitted, vae.quantize.codebook_size) == (False, 17)
    with torch.no_grad():
        assert torch.isfinite(vae.train()(noise_images()).sample).all()
    assert torch.equal(vae.encoder.conv_in.weight, tiny_vae().encoder.conv_in.weight)


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
