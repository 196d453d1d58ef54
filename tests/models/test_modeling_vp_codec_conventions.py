"""What code written for any transformers model takes for granted."""

import inspect
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils import _pytree as pytree
from transformers import AutoModel
from transformers.models.dac.modeling_dac import Snake1d
from transformers.models.mimi.modeling_mimi import MimiLayerScale
from transformers.utils import ModelOutput

from tiny import CLOSE, FSP, LENGTHS, batch_of, tiny_codec, tiny_config
from vpvae_hf import VPCodecModel

BUILDERS = {"constructor": VPCodecModel, "auto": AutoModel.from_config}


@pytest.fixture(params=BUILDERS.values(), ids=BUILDERS)
def build(request):
    return request.param


def equal(made, other):
    """Equal to the bit, through tuples and dictionaries."""
    (leaves, kind), (others, other_kind) = pytree.tree_flatten(made), pytree.tree_flatten(other)
    return kind == other_kind and all(torch.equal(*pair) for pair in zip(leaves, others, strict=True))


def calls(codec, **kwargs):
    """What each of the three ways into a codec gives, of a padded batch."""
    audio, mask = batch_of(LENGTHS)
    codes = codec.encode(audio, mask).audio_codes
    return {
        "encode": codec.encode(audio, mask, **kwargs),
        "decode": codec.decode(codes, mask, **kwargs),
        "forward": codec(audio, mask, **kwargs),
    }


def test_first_argument_is_the_main_input(codec):
    assert VPCodecModel.main_input_name == "input_values"
    for method in (VPCodecModel.forward, VPCodecModel.encode):
        assert list(inspect.signature(method).parameters)[1:3] == ["input_values", "padding_mask"]
    assert list(inspect.signature(VPCodecModel.decode).parameters)[1:3] == ["audio_codes", "padding_mask"]
    assert codec.preprocessor().model_input_names[0] == codec.main_input_name


def test_tuples_hold_what_dictionaries_do(codec, no_gradients):
    tuples = calls(codec, return_dict=False)
    for name, output in calls(codec).items():
        assert isinstance(output, ModelOutput)
        assert type(tuples[name]) is tuple
        assert equal(output.to_tuple(), tuples[name])


def test_config_may_ask_for_tuples(own_codec, no_gradients):
    asked = calls(own_codec, return_dict=False)
    audio, mask = batch_of(LENGTHS)
    own_codec.config.return_dict = False
    codes = own_codec.encode(audio, mask)[0]
    assert equal(own_codec.encode(audio, mask), asked["encode"])
    assert equal(own_codec.decode(codes, mask), asked["decode"])
    assert equal(own_codec(audio, mask), asked["forward"])
    assert isinstance(own_codec.encode(audio, mask, return_dict=True), ModelOutput)


def test_outputs_are_rebuilt_from_their_parts(codec, no_gradients):
    for output in calls(codec).values():
        assert equal(type(output)(**output).to_tuple(), output.to_tuple())
        leaves, kind = pytree.tree_flatten(output)
        assert type(pytree.tree_unflatten(leaves, kind)) is type(output)


def test_weights_start_sensibly(build, quantizer):
    scale = 0.02
    model = build(tiny_config(quantizer, layer_scale_initial_scale=scale))
    seen = set()
    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            assert torch.isfinite(tensor).all()
            assert tensor.device.type == "cpu"
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
            assert module.weight.std() > 0
            assert abs(module.weight.mean()) < module.weight.std()
            assert module.weight.abs().max() < 5
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            assert not module.bias.any()
        elif isinstance(module, nn.Linear) and module.bias is not None:
            assert module.bias.abs().max() <= 1 / math.sqrt(module.in_features)
        elif isinstance(module, Snake1d):
            assert (module.alpha == 1).all()
        elif isinstance(module, MimiLayerScale):
            assert_close(module.scale, torch.full_like(module.scale, scale))
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert not module.bias.any()
        seen.add(type(module))
    assert {nn.Conv1d, nn.ConvTranspose1d, nn.Linear, Snake1d, MimiLayerScale, nn.LayerNorm} <= seen
    assert all(not buffer.any() for buffer in model.quantize.buffers())


def test_equal_seeds_make_equal_weights(build, quantizer):
    states = []
    for seed, make in ((0, build), (0, VPCodecModel), (1, build)):
        torch.manual_seed(seed)
        states.append(make(tiny_config(quantizer)).state_dict())
    assert equal(states[0], states[1])
    assert not torch.equal(states[0]["encoder.conv1.weight"], states[2]["encoder.conv1.weight"])


def test_attention_is_chosen_on_loading(causal, tmp_path, no_gradients):
    tiny_codec(FSP, causal=causal).save_pretrained(tmp_path)
    made = []
    for attention in ("eager", "sdpa"):
        codec = VPCodecModel.from_pretrained(tmp_path, attn_implementation=attention)
        assert codec.config._attn_implementation == attention
        layers = (*codec.encoder_transformer.layers, *codec.decoder_transformer.layers)
        assert {layer.self_attn.config._attn_implementation for layer in layers} == {attention}
        audio, mask = batch_of(LENGTHS)
        made.append((codec.encode(audio, mask).latents.mT[codec.token_mask(mask)], codec(audio, mask)[1]))
    assert_close(*made, **CLOSE)


def test_config_knows_the_dtype(quantizer, tmp_path):
    codec = tiny_codec(quantizer)
    codec.save_pretrained(tmp_path)
    assert VPCodecModel.from_pretrained(tmp_path).config.dtype == torch.float32
    assert VPCodecModel.from_pretrained(tmp_path, dtype=torch.bfloat16).config.dtype == torch.bfloat16
    model = AutoModel.from_config(tiny_config(quantizer), dtype=torch.bfloat16)
    assert model.dtype == model.config.dtype == torch.bfloat16
    assert {buffer.dtype for buffer in model.buffers()} <= {torch.float32}
    assert torch.get_default_dtype() == torch.float32
