"""Every layer is called as a module, so that what others attach to layers works."""

import copy
import warnings

import peft
import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from transformers.models.dac.modeling_dac import Snake1d

from tiny import FSP, HOP, MODELS, VP, noise, tiny_codec, tiny_vae, training
from vpvae_hf import StreamingEncoder

CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d
LAYERS = CONVOLUTIONS | nn.Linear | nn.LayerNorm | nn.GroupNorm | Snake1d


def layers(model, types):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, types)}


def causal_codec(quantizer=VP):
    return tiny_codec(quantizer, causal=True)


@pytest.fixture(params=[tiny_vae, tiny_codec, causal_codec])
def build(request):
    return request.param


@pytest.fixture
def inputs(build):
    return MODELS["image" if build is tiny_vae else "audio"][1]


class Wrapped(nn.Module):
    """A layer in the place of another, of which it has no attribute."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def test_hooks_of_every_layer_are_called_once_per_pass(build, inputs):
    model = training(build())
    calls = {}
    for name, layer in layers(model, LAYERS).items():
        for way in ("register_forward_hook", "register_full_backward_hook"):
            calls[name, way] = 0
            getattr(layer, way)(lambda *_, key=(name, way): calls.update({key: calls[key] + 1}))
    model(inputs.clone().requires_grad_()).sample.square().sum().backward()
    assert {key: count for key, count in calls.items() if count != 1} == {}


@torch.no_grad()
def test_layers_can_be_replaced(build, inputs):
    model = build()
    expected = model.tokenize(inputs), model(inputs).sample
    for name, layer in layers(model, LAYERS).items():
        model.set_submodule(name, Wrapped(layer))
    assert torch.equal(model.tokenize(inputs), expected[0])
    assert torch.equal(model(inputs).sample, expected[1])


def test_a_stream_goes_on_when_its_layers_are_wrapped():
    codec, audio = causal_codec(), noise(1, 12 * HOP)
    stream = StreamingEncoder(codec)
    codes = [stream.encode(audio[..., : 6 * HOP])]
    for name, layer in layers(codec, CONVOLUTIONS).items():
        codec.set_submodule(name, Wrapped(layer))
    assert torch.equal(torch.cat([*codes, stream.encode(audio[..., 6 * HOP :])], dim=-1)[:, 0], codec.tokenize(audio))


@pytest.mark.parametrize("reparametrize", [lambda layer: prune.l1_unstructured(layer, "weight", 0.5), weight_norm])
def test_weights_can_be_pruned_and_parametrized(build, inputs, reparametrize):
    model = training(build())
    for layer in layers(model, CONVOLUTIONS | nn.Linear).values():
        reparametrize(layer)
    output = model(inputs)
    (output.sample.square().mean() + output.loss).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    with pytest.raises(ValueError, match=r"first make them permanent with prune.remove"):
        model.save_pretrained("pruned")


@pytest.mark.parametrize("kind", ["vp", "vq"])
@torch.no_grad()
def test_offloaded_models_have_the_same_codes(build, inputs, kind):
    model = build({"kind": kind, "codebook_size": 16, "latent_dim": 3})
    codes = model.tokenize(inputs)
    expected = model.detokenize(codes), model(inputs).sample
    model = cpu_offload(model, execution_device="cpu", offload_buffers=True)
    assert next(model.encoder.parameters()).is_meta
    assert torch.equal(model.tokenize(inputs), codes)
    assert torch.equal(model.detokenize(codes), expected[0])
    assert torch.equal(model(inputs).sample, expected[1])
    for needs_weights in (model.fingerprint, lambda: model.save_pretrained("offloaded")):
        with pytest.raises(ValueError, match=r"weights of the model are offloaded.*remove_hook_from_submodules"):
            needs_weights()


@torch.no_grad()
def test_offloaded_models_take_levels(build, inputs):
    model = build(FSP)
    levels = [torch.linspace(-1, 1, count) for count in model.quantize.config.levels]
    offloaded = cpu_offload(copy.deepcopy(model), execution_device="cpu", offload_buffers=True)
    for each in (model, offloaded):
        each.set_levels(levels)
    assert torch.equal(offloaded.tokenize(inputs), model.tokenize(inputs))


# transformers warns of a name that peft uses.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("targets", [r".*\.conv\d?", "all-linear"])
def test_low_rank_adapters(build, inputs, targets):
    model = training(build())
    before = model.eval().tokenize(inputs), model.fingerprint()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False))
    output = adapted.train()(inputs)
    (output.sample.square().mean() + output.loss).backward()
    unused = [name for name, weight in adapted.named_parameters() if "lora_" in name and weight.grad is None]
    assert unused == []
    codes = adapted.eval().tokenize(inputs)
    assert not torch.equal(codes, before[0])
    with adapted.disable_adapter():
        assert torch.equal(adapted.tokenize(inputs), before[0])
    active = adapted.fingerprint()["encoder"]
    with pytest.raises(ValueError, match=r"the model has adapters.*\(or PeftModel.save_pretrained\)"):
        adapted.base_model.model.save_pretrained("adapted")
    merged = adapted.merge_and_unload()
    assert torch.equal(merged.tokenize(inputs), codes)
    assert len({before[1]["encoder"], active, merged.fingerprint()["encoder"]}) == 3


def test_images_have_the_adapter_methods_of_diffusers(tmp_path):
    vae, images = tiny_vae(), MODELS["image"][1]
    codes, fingerprint = vae.tokenize(images), vae.fingerprint()
    targets = peft.LoraConfig(target_modules=["to_q", "to_v", "conv1"], r=2, init_lora_weights=False)
    vae.add_adapter(targets, "style")
    adapted = vae.tokenize(images), vae.fingerprint()
    vae.disable_adapters()
    assert torch.equal(vae.tokenize(images), codes)
    # The fingerprint shows whether the adapter is active.
    assert len({fingerprint["encoder"], adapted[1]["encoder"], vae.fingerprint()["encoder"]}) == 3
    with pytest.raises(ValueError, match=r"the model has adapters.*; save them alone with save_lora_adapter"):
        vae.save_pretrained(tmp_path)
    vae.save_lora_adapter(tmp_path, adapter_name="style")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusers itself
        other = tiny_vae()
        other.load_lora_adapter(tmp_path, adapter_name="style", prefix=None, use_safetensors=True)
    assert torch.equal(other.tokenize(images), adapted[0])
    assert other.fingerprint() == adapted[1]


def test_encoding_audio_keeps_activations_only_for_a_gradient():
    codec, audio = tiny_codec(), noise(1, 4 * HOP)
    assert not codec.encode(audio).latents.requires_grad
    assert codec.encode(audio.clone().requires_grad_()).latents.requires_grad
    assert not codec.encode(audio.numpy()).latents.requires_grad
    assert codec.train().encode(audio).latents.requires_grad
