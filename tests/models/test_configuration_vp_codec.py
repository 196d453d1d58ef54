"""The settings of the audio tokenizer."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch.testing import assert_close

from tiny import FSP, HOP, RATE, tiny_config
from vpvae_hf import VPCodecConfig


def test_config_tells_what_follows_from_it():
    config = tiny_config()
    assert config.hop_length == HOP
    assert_close(config.frame_rate, RATE / HOP)
    assert round(config.frame_rate, 2) == 166.67
    assert (config.codebook_size, config.codebook_dim, config.num_codebooks) == (16, 3, 1)
    assert config.upsampling_ratios == [4, 4, 3, 2]
    assert (tiny_config(FSP).codebook_size, tiny_config(FSP).codebook_dim) == (36, 3)


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
        ("decoder_hidden_size", 40, "a multiple of 16, it is halved 4 times, got 40"),
        ("hidden_size", 33, "a multiple of num_attention_heads=2, got 33"),
        ("num_attention_heads", 0, "at least 1, got 0"),
        ("num_key_value_heads", 3, "a divisor of num_attention_heads=2, got 3"),
        ("num_hidden_layers", -1, "at least 0, got -1"),
        ("head_dim", 5, "even and at least 2.*got 5"),
        ("hidden_act", "jelu", "one of .*gelu.*got 'jelu'"),
        ("attention_dropout", 1.5, r"in \[0, 1\], got 1.5"),
        ("norm_eps", -1e-5, "above 0, got -1e-05"),
        ("chunk_length_s", 0.001, "at least one hop, and finite, got 0.001"),
        ("chunk_length_s", float("inf"), "finite, got inf"),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0}, "'default', got 'linear'; leave it out"),
    ],
)
def test_values_out_of_range_are_refused(field, value, message):
    with pytest.raises(ValueError, match=f"{field} must (be|have) .*{message}"):
        tiny_config(**{field: value})


def test_values_of_another_type_are_refused():
    with pytest.raises(StrictDataclassFieldValidationError, match="sampling_rate"):
        VPCodecConfig(sampling_rate="16k")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hiden_size": 3}, "unknown field 'hiden_size' for VPCodecConfig; did you mean 'hidden_size'"),
        ({"sample_rate": 3}, "did you mean 'sampling_rate'"),
        *(
            ({name: 3}, f"{name}=3 cannot be set, it follows from downsampling")
            for name in ("hop_length", "frame_rate")
        ),
        ({"quantizer": {"kind": "vqq"}}, "unknown quantizer kind 'vqq'.* valid: vp, fsp"),
    ],
)
def test_unknown_and_derived_fields_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VPCodecConfig(**settings)
