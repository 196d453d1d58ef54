"""The audio tokenizer's folder and its config."""

import json
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoFeatureExtractor, AutoModel, modeling_utils

from tiny import FSP, HOP, RATE, VP, noise, tiny_codec, tiny_config
from vpvae_hf import CodebookNotFittedError, VPCodecConfig, VPCodecModel

pytestmark = pytest.mark.usefixtures("no_gradients")

AUDIO = noise(2, 9 * HOP + 5)


@pytest.fixture
def folder(tmp_path):
    """A saved and fitted codec."""
    tiny_codec().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def settings_of(config):
    """All but what transformers notes of where a model came from."""
    noted = ("_name_or_path", "architectures", "dtype", "transformers_version")
    return {name: value for name, value in config.to_dict().items() if name not in noted}


def assert_same(model, other):
    """Equal to the bit: settings, parameters, buffers, codes and audio."""
    assert settings_of(model.config) == settings_of(other.config)
    for name in ("named_parameters", "named_buffers"):
        tensors, others = dict(getattr(model, name)()), dict(getattr(other, name)())
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            assert tensor.device.type == "cpu", key
            assert tensor.dtype == others[key].dtype, key
            assert torch.equal(tensor, others[key]), key
    codes = model.encode(AUDIO).audio_codes
    assert torch.equal(codes, other.encode(AUDIO).audio_codes)
    assert torch.equal(model.decode(codes).audio_values, other.decode(codes).audio_values)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shards", [False, True], ids=["whole", "sharded"])
def test_loaded_codec_is_the_saved_one_to_the_bit(quantizer, tmp_path, shards, variant):
    codec = tiny_codec(quantizer)
    codec.save_pretrained(tmp_path, variant=variant, **({"max_shard_size": "100KB"} if shards else {}))
    assert any("index" in name for name in files_of(tmp_path)) == shards
    assert any("fp16" in name for name in files_of(tmp_path)) == (variant is not None)
    loaded = VPCodecModel.from_pretrained(tmp_path, variant=variant)
    assert not loaded.training
    assert_same(loaded, codec)


def test_causal_codec_comes_back_causal(tmp_path):
    codec = tiny_codec(causal=True, downsampling_ratios=[3, 5], num_key_value_heads=1)
    codec.save_pretrained(tmp_path)
    loaded = VPCodecModel.from_pretrained(tmp_path)
    assert loaded.config.causal
    assert_same(loaded, codec)


def test_every_tensor_is_in_the_file(folder):
    codec = tiny_codec()
    tensors = dict(codec.named_parameters()) | dict(codec.named_buffers())
    assert all(not module._non_persistent_buffers_set for module in codec.modules())
    assert load_file(folder / "model.safetensors").keys() == tensors.keys()


def test_queue_is_not_in_the_file(folder):
    codec = tiny_codec().train()
    codec(AUDIO)
    assert len(codec.quantize.queue) > 0
    before = (folder / "model.safetensors").read_bytes()
    codec.save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert len(VPCodecModel.from_pretrained(folder).quantize.queue) == 0


def test_codebook_and_fitted_state_survive(tmp_path):
    codec = tiny_codec()
    codebook = torch.randn(40, 3)
    codec.set_codebook(codebook)
    codec.save_pretrained(tmp_path)
    loaded = VPCodecModel.from_pretrained(tmp_path)
    assert loaded.quantize.config.fitted
    assert loaded.config.codebook_size == loaded.quantize.codebook_size == 40
    assert torch.equal(loaded.quantize.codebook, codebook)


def test_unfitted_codec_saves_and_loads(tmp_path):
    tiny_codec(fitted=False).save_pretrained(tmp_path)
    loaded = VPCodecModel.from_pretrained(tmp_path)
    assert not loaded.config.quantizer["fitted"]
    assert not loaded.quantize.codebook.any()
    with pytest.raises(CodebookNotFittedError, match="fit_codebook"):
        loaded.encode(AUDIO)
    assert torch.equal(loaded.latent_vectors(AUDIO), tiny_codec(fitted=False).latent_vectors(AUDIO))


@pytest.mark.parametrize(
    "settings", [FSP, {"kind": "vp", "codebook_size": 32, "latent_dim": 5}], ids=["same_dim", "other_dim"]
)
def test_config_saved_after_set_quantizer_is_of_the_new_one(folder, settings):
    codec = VPCodecModel.from_pretrained(folder)
    codec.set_quantizer(settings)
    if codec.quantize.needs_fitting:
        codec.set_codebook(torch.randn(32, 5))
    codec.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())["quantizer"]
    assert saved.items() >= settings.items()
    assert_same(VPCodecModel.from_pretrained(folder), codec)


def test_settings_changed_on_the_quantizer_alone_are_saved(tmp_path):
    codec = tiny_codec(fitted=False)
    codec.quantize.set_codebook(torch.randn(20, 3))
    codec.save_pretrained(tmp_path)
    assert_same(VPCodecModel.from_pretrained(tmp_path), codec)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codebook_is_loaded_in_float32(folder, dtype):
    codebook = tiny_codec().quantize.codebook
    loaded = VPCodecModel.from_pretrained(folder, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert loaded.quantize.codebook.dtype == torch.float32
    assert torch.equal(loaded.quantize.codebook, codebook)
    assert_same(loaded, tiny_codec().to(dtype))


def test_half_precision_comes_back_as_saved(tmp_path):
    codec = tiny_codec().to(torch.bfloat16)
    codec.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["quantize.codebook"].dtype == torch.float32
    loaded = VPCodecModel.from_pretrained(tmp_path)
    assert loaded.dtype == loaded.config.dtype == torch.bfloat16
    assert_same(loaded, codec)


def test_auto_classes_in_another_process_give_the_same_codes(folder):
    """That process has asked for nothing but `import vpvae_hf`."""
    torch.save(AUDIO, folder.parent / "audio.pt")
    program = """
import sys, torch, transformers, vpvae_hf
torch.set_num_threads(1)
folder, audio = sys.argv[1] + "/saved", torch.load(sys.argv[1] + "/audio.pt")
config = transformers.AutoConfig.from_pretrained(folder)
extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
codecs = [vpvae_hf.VPCodecModel.from_pretrained(folder), transformers.AutoModel.from_pretrained(folder),
          transformers.AutoModelForAudioTokenization.from_pretrained(folder)]
inputs = extractor([sample.numpy() for sample in audio[:, 0]], return_tensors="pt")
assert all(type(codec) is vpvae_hf.VPCodecModel for codec in codecs)
assert type(transformers.AutoModel.from_config(config)) is vpvae_hf.VPCodecModel
made = {"types": [type(config).__name__, type(extractor).__name__], "hop": config.hop_length,
        "codes": [codec.encode(**inputs).audio_codes for codec in codecs]}
torch.save(made, sys.argv[1] + "/made.pt")
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program, str(folder.parent)], check=True)
    made = torch.load(folder.parent / "made.pt")
    assert made["types"] == ["VPCodecConfig", "VPCodecFeatureExtractor"]
    assert made["hop"] == HOP
    expected = tiny_codec().encode(AUDIO).audio_codes
    assert len(made["codes"]) == 3
    assert all(torch.equal(codes, expected) for codes in made["codes"])


def test_feature_extractor_has_the_rate_of_the_codec(tmp_path):
    tiny_codec(sampling_rate=24000).save_pretrained(tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert extractor.sampling_rate == 24000
    assert extractor.to_dict() == tiny_codec(sampling_rate=24000).preprocessor().to_dict()


def test_auto_model_builds_from_a_config():
    model = AutoModel.from_config(tiny_config(FSP))
    assert type(model) is VPCodecModel
    assert model.eval().encode(AUDIO).audio_codes.shape == (2, 1, 10)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("sharded_first", [True, False])
def test_saving_again_leaves_no_old_weights(tmp_path, variant, sharded_first):
    codec, shards = tiny_codec(), {"max_shard_size": "100KB"}
    codec.save_pretrained(tmp_path, variant=variant, **(shards if sharded_first else {}))
    old = files_of(tmp_path).keys() - {"config.json", "preprocessor_config.json"}
    (tmp_path / "notes.txt").write_text("mine")
    codec.set_codebook(torch.randn(40, 3))
    codec.save_pretrained(tmp_path, variant=variant, **({} if sharded_first else shards))
    assert not old & files_of(tmp_path).keys()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert_same(VPCodecModel.from_pretrained(tmp_path, variant=variant), codec)


def test_saving_leaves_other_variants_alone(tmp_path):
    codec = tiny_codec()
    codec.save_pretrained(tmp_path, variant="fp16", max_shard_size="100KB")
    before = files_of(tmp_path)
    codec.save_pretrained(tmp_path)
    assert files_of(tmp_path).items() >= before.items()
    for variant in (None, "fp16"):
        assert_same(VPCodecModel.from_pretrained(tmp_path, variant=variant), codec)


def fail_after(monkeypatch, calls):
    """Writing weights fails once that many files of them have been written."""
    write, left = modeling_utils.safe_save_file, [calls]

    def write_or_fail(*args, **kwargs):
        if left[0] == 0:
            raise OSError("no space left on device")
        left[0] -= 1
        write(*args, **kwargs)

    monkeypatch.setattr(modeling_utils, "safe_save_file", write_or_fail)


@pytest.mark.parametrize("written", [0, 3])
def test_failed_save_leaves_the_old_folder_whole(folder, monkeypatch, written):
    before, codec = files_of(folder), tiny_codec()
    codec.set_codebook(torch.randn(40, 3))
    fail_after(monkeypatch, written)
    with pytest.raises(OSError, match="no space left"):
        codec.save_pretrained(folder, max_shard_size="100KB")
    assert files_of(folder) == before
    assert [file.name for file in folder.parent.iterdir()] == ["saved"]
    assert_same(VPCodecModel.from_pretrained(folder), tiny_codec())


def test_failed_first_save_leaves_nothing(tmp_path, monkeypatch):
    fail_after(monkeypatch, 0)
    with pytest.raises(OSError, match="no space left"):
        tiny_codec().save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_saving_into_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file; name a folder"):
        tiny_codec().save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    "key", ["quantize.codebook", "quant_proj.bias", "encoder.block.0.snake1.alpha", "decoder.conv2.weight"]
)
def test_missing_weights_are_refused(folder, key):
    change_weights(folder, lambda weights: weights.pop(key))
    with pytest.raises(ValueError, match=rf"{folder}: the weights lack {key};.*save the model again"):
        VPCodecModel.from_pretrained(folder)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_codebook_that_is_not_one_is_refused(folder, value):
    change_weights(folder, lambda weights: weights["quantize.codebook"].fill_(value))
    with pytest.raises(ValueError, match=rf"{folder}: the config says that the codebook is fitted.*fit_codebook again"):
        AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("left", [0, 7, 1000, -1])
def test_damaged_weights_are_refused(folder, left):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ValueError, match=rf"{folder}: .*damaged or cut short.*save the model again"):
        VPCodecModel.from_pretrained(folder)


def test_damaged_shard_is_refused(tmp_path):
    tiny_codec().save_pretrained(tmp_path, max_shard_size="100KB")
    shard = sorted(tmp_path.glob("model-*"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{tmp_path}: .*damaged or cut short.*save the model again"):
        VPCodecModel.from_pretrained(tmp_path)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        VPCodecModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"intermediate_size": 32}, r"mlp\.fc1\.weight is \(64, 32\), not \(32, 32\)"),
        ({"quantizer": {**VP, "codebook_size": 17, "fitted": True}}, r"quantize\.codebook is \(16, 3\), not \(17, 3\)"),
        ({"quantizer": {**FSP, "levels": [4, 3]}}, r"quant_proj\.bias is \(3,\), not \(2,\)"),
    ],
    ids=["transformer", "codebook", "projection"],
)
def test_weights_of_another_config_are_refused(folder, fields, what):
    change_config(folder, **fields)
    message = rf"{folder}: weights and config do not belong together .*{what}.*restore the config\.json"
    with pytest.raises(ValueError, match=message):
        VPCodecModel.from_pretrained(folder)


def test_weights_of_another_config_are_loaded_on_request(folder):
    change_config(folder, intermediate_size=32)
    model, info = VPCodecModel.from_pretrained(folder, ignore_mismatched_sizes=True, output_loading_info=True)
    assert len(info["mismatched_keys"]) == 8
    assert torch.equal(model.quantize.codebook, tiny_codec().quantize.codebook)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_nothing_loaded_is_left_uninitialised(folder):
    change_config(folder, quantizer={**VP, "codebook_size": 17, "fitted": False})
    torch.use_deterministic_algorithms(True)  # new memory is then filled with NaN
    try:
        assert torch.empty(1).isnan().all()
        model = VPCodecModel.from_pretrained(folder, ignore_mismatched_sizes=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(model.quantize.codebook, torch.zeros(17, 3))
    assert all(torch.isfinite(tensor).all() for tensor in (*model.parameters(), *model.buffers()))


def test_misspelt_field_of_a_file_is_refused(folder):
    change_config(folder, hiden_size=3)
    with pytest.raises(ValueError, match=r"unknown field 'hiden_size'.*did you mean 'hidden_size'"):
        VPCodecModel.from_pretrained(folder)


def test_missing_folder_is_told_as_such(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/none: there is no such folder"):
        VPCodecModel.from_pretrained(tmp_path / "none")


def test_config_tells_what_follows_from_it():
    config = tiny_config()
    assert config.hop_length == HOP
    assert_close(config.frame_rate, RATE / HOP)
    assert round(config.frame_rate, 2) == 166.67
    assert (config.codebook_size, config.codebook_dim, config.num_codebooks) == (16, 3, 1)
    assert config.upsampling_ratios == [4, 4, 3, 2]
    assert (tiny_config(FSP).codebook_size, tiny_config(FSP).codebook_dim) == (36, 3)


def test_default_config_is_that_of_a_whole_codec():
    config = VPCodecConfig()
    assert (config.hop_length, config.codebook_size, config.codebook_dim) == (96, 1024, 4)
    assert not config.quantizer["fitted"]


@pytest.mark.parametrize("settings", [{}, {"causal": True, "downsampling_ratios": (5, 4), "chunk_length_s": 3}])
def test_config_survives_json(quantizer, tmp_path, settings):
    config = tiny_config(quantizer, **settings)
    again = VPCodecConfig(**json.loads(config.to_json_string(use_diff=False)))
    assert again.to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    loaded = VPCodecConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert isinstance(loaded.downsampling_ratios, list)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert not {"hop_length", "frame_rate", "codebook_size", "num_codebooks"} & saved.keys()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sampling_rate", 0, "at least 1, got 0"),
        ("downsampling_ratios", [], r"strides of at least 1, got \[\]"),
        ("downsampling_ratios", [2, 0], r"strides of at least 1, got \[2, 0\]"),
        ("encoder_hidden_size", 0, "at least 1, got 0"),
        ("decoder_hidden_size", 40, "a multiple of 16, it is halved 4 times, got 40"),
        ("hidden_size", 33, "a multiple of num_attention_heads=2, got 33"),
        ("num_attention_heads", 0, "at least 1, got 0"),
        ("num_key_value_heads", 3, "a divisor of num_attention_heads=2, got 3"),
        ("num_hidden_layers", -1, "at least 0, got -1"),
        ("head_dim", 5, "even and at least 2.*got 5"),
        ("intermediate_size", 0, "at least 1, got 0"),
        ("hidden_act", "jelu", "one of .*gelu.*got 'jelu'"),
        ("attention_dropout", 1.5, r"in \[0, 1\], got 1.5"),
        ("sliding_window", 0, "at least 1, got 0"),
        ("norm_eps", -1e-5, "above 0, got -1e-05"),
        ("chunk_length_s", 0.001, "at least one hop, and finite, got 0.001"),
        ("chunk_length_s", float("inf"), "finite, got inf"),
        ("chunk_length_s", float("nan"), "finite, got nan"),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0}, "'default', got 'linear'; leave it out"),
    ],
)
def test_values_out_of_range_are_refused(field, value, message):
    with pytest.raises(ValueError, match=f"{field} must (be|have) .*{message}"):
        tiny_config(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("sampling_rate", "16k"), ("downsampling_ratios", [2.5]), ("causal", "yes"), ("quantizer", "vp")],
)
def test_values_of_another_type_are_refused(field, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        VPCodecConfig(**{field: value})


@pytest.mark.parametrize(
    ("name", "meant"),
    [("hiden_size", "hidden_size"), ("sample_rate", "sampling_rate"), ("quantiser", "quantizer")],
)
def test_misspelt_fields_are_refused(name, meant):
    with pytest.raises(ValueError, match=f"unknown field '{name}' for VPCodecConfig; did you mean '{meant}'"):
        VPCodecConfig(**{name: 3})


@pytest.mark.parametrize("name", ["hop_length", "frame_rate", "codebook_size", "codebook_dim", "num_codebooks"])
def test_derived_fields_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=3 cannot be set, it follows from downsampling_ratios"):
        VPCodecConfig(**{name: 3})


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        ({"kind": "vqq"}, "unknown quantizer kind 'vqq'; did you mean 'vq'"),
        ({"codebook_size": 16}, "unknown quantizer kind None"),
        ({"kind": "vp", "codebok_size": 16}, "did you mean 'codebook_size'"),
        ({"kind": "vp", "codebook_size": 1}, "at least 2, got 1"),
    ],
)
def test_invalid_quantizers_are_refused(quantizer, message):
    with pytest.raises(ValueError, match=message):
        VPCodecConfig(quantizer=quantizer)
