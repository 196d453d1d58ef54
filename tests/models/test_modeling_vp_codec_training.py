"""The forward pass in train mode."""

from unittest import mock

import pytest
import torch
from torch.testing import assert_close

from tiny import CLOSE, HOP, LENGTHS, batch_of, noise, tiny_codec, training
from vpvae_hf.training.trainer import checkpoint_activations


@pytest.fixture
def codec(quantizer, causal):
    """For tests that change it."""
    return tiny_codec(quantizer, causal=causal)


def test_forward_is_determined_by_its_generator(codec):
    training(codec)
    audio = noise(2, 20 * HOP)
    state = codec.quantize.training_state.state_dict() if codec.quantize.needs_fitting else None
    made = []
    for seed in (4, 4, 5):
        if state is not None:
            codec.quantize.training_state.load_state_dict(state)
        torch.manual_seed(len(made))
        made.append(codec(audio, generator=torch.Generator().manual_seed(seed)).audio_values)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("batch", [(noise(2, 20 * HOP),), batch_of(LENGTHS)], ids=["whole", "padded"])
def test_gradient_reaches_every_parameter(codec, attention, batch):
    codec.set_attn_implementation(attention)
    output = training(codec)(*batch)
    (output.audio_values.square().mean() + output.loss).backward()
    for name, parameter in codec.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_gradient_of_a_padded_sample_is_that_of_the_sample_alone(causal):
    gradients = []
    for padded in (True, False):
        codec = tiny_codec(causal=causal).train()  # with an empty queue nothing is perturbed
        audio, mask = batch_of([30 * HOP, 4 * HOP])
        made = codec(audio, mask) if padded else codec(audio[1:, :, : 4 * HOP])
        made.audio_values[-1].square().sum().backward()
        gradients.append([parameter.grad for parameter in codec.parameters()])
    assert_close(*gradients, atol=1e-4, rtol=1e-3)


def test_padding_does_not_enter_the_quantizer(codec):
    audio, mask = batch_of(LENGTHS)
    seen = []
    codec.quantize.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().reshape(-1, 3)))
    codec.train()
    output = codec(audio, mask)
    for i, length in enumerate(LENGTHS):
        codec(audio[i : i + 1, :, :length])
    assert len(seen[0]) == 31 + 3 + 2 + 1
    assert_close(seen[0], torch.cat(seen[1:]), **CLOSE)
    beyond = ~output.audio_codes_mask
    assert (output.latents.mT[beyond] == 0).all()
    assert (output.latents.mT[~beyond] != 0).any(dim=-1).all()


def test_gradient_checkpointing_changes_nothing_but_runs_twice(codec):
    audio, mask = batch_of(LENGTHS)
    training(codec)
    state = codec.quantize.training_state.state_dict() if codec.quantize.needs_fitting else None
    runs = dict.fromkeys(
        [
            *(f"{part}.block.{i}.snake1" for part in ("encoder", "decoder") for i in range(4)),
            *(f"{part}_transformer.layers.{i}.mlp" for part in ("encoder", "decoder") for i in range(2)),
        ],
        0,
    )
    for name in runs:
        codec.get_submodule(name).register_forward_hook(lambda *_, name=name: runs.update({name: runs[name] + 1}))
    gradients = []
    for switch, times in ((lambda codec: None, 1), (checkpoint_activations, 3)):
        switch(codec)
        if state is not None:
            codec.quantize.training_state.load_state_dict(state)
        codec.zero_grad()
        output = codec(audio, mask, generator=torch.Generator().manual_seed(0))
        (output.audio_values.square().mean() + output.loss).backward()
        gradients.append([parameter.grad.clone() for parameter in codec.parameters()])
        assert set(runs.values()) == {times}
    assert_close(gradients[1], gradients[0])


def test_training_takes_recordings_as_a_whole():
    """Longer than a chunk too, so that the gradient is that of the whole."""
    codec = tiny_codec(chunk_length_s=0.1).train()
    with (
        mock.patch.object(codec, "encode_part", wraps=codec.encode_part) as encodes,
        mock.patch.object(codec, "decode_part", wraps=codec.decode_part) as decodes,
    ):
        codec(noise(1, 40 * HOP))
    assert encodes.call_count == decodes.call_count == 1
