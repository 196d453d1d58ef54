"""The forward pass in train mode."""

from unittest import mock

import pytest
import torch
from torch.testing import assert_close

from tiny import CLOSE, FSP, HOP, LENGTHS, VP, batch_of, mask_of, noise, tiny_codec, training


@pytest.fixture
def codec(quantizer, causal):
    """For tests that change it."""
    return tiny_codec(quantizer, causal=causal)


def test_forward_perturbs(codec):
    audio = noise(2, 20 * HOP)
    clean = codec.encode(audio).latents
    output = training(codec)(audio)
    assert output.audio_codes is None
    assert output.audio_values.shape == audio.shape
    assert not torch.equal(output.latents, clean)
    assert (output.latents - clean).abs().mean() < 1
    assert output.loss.shape == ()
    assert output.loss.requires_grad
    assert {"quantizer/displacement_rms", "quantizer/quantization_error_rms", "quantizer/acceptance"} <= set(
        output.metrics
    )
    assert all(not value.requires_grad and value.ndim == 0 for value in output.metrics.values())


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


def test_gradient_reaches_every_parameter(codec):
    output = training(codec)(noise(2, 20 * HOP))
    (output.audio_values.square().mean() + output.loss).backward()
    for name, parameter in codec.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("quantizer", "attention"), [(VP, "sdpa"), (FSP, "eager")], ids=["vp-sdpa", "fsp-eager"])
def test_gradient_is_finite_in_padded_batches(codec, attention):
    codec.set_attn_implementation(attention)
    output = training(codec)(*batch_of(LENGTHS))
    (output.audio_values.square().mean() + output.loss).backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in codec.parameters())


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


def test_padding_does_not_enter_the_queue():
    codec = tiny_codec().train()
    codec(*batch_of(LENGTHS))
    assert codec.quantize.queue.pushed == 31 + 3 + 2 + 1
    vectors = codec.eval().latent_vectors(*batch_of(LENGTHS))
    frames = codec.token_mask(mask_of(LENGTHS))
    queued = codec.quantize.queue.latents()
    assert_close(queued.sort(dim=0).values, vectors[frames].sort(dim=0).values, **CLOSE)


def test_quantization_error_is_measured_without_padding(codec):
    audio, mask = batch_of(LENGTHS)
    measured = codec(audio, mask).metrics["quantizer/quantization_error_rms"]
    encoded = codec.encode(audio, mask)
    latents = encoded.latents.mT[encoded.audio_codes_mask]
    error = codec.quantize.decode(codec.quantize.encode(latents)) - latents
    assert_close(measured, error.square().sum(dim=-1).mean().sqrt())


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
    for checkpointing in (False, True):
        if checkpointing:
            codec.activation_checkpointing_enable()
        if state is not None:
            codec.quantize.training_state.load_state_dict(state)
        codec.zero_grad()
        output = codec(audio, mask, generator=torch.Generator().manual_seed(0))
        (output.audio_values.square().mean() + output.loss).backward()
        gradients.append([parameter.grad.clone() for parameter in codec.parameters()])
        assert set(runs.values()) == {3 if checkpointing else 1}
    assert_close(*gradients)


def test_training_takes_recordings_as_a_whole():
    """Longer than a chunk too, so that the gradient is that of the whole."""
    codec = tiny_codec(chunk_length_s=0.1).train()
    with (
        mock.patch.object(codec, "encode_part", wraps=codec.encode_part) as encodes,
        mock.patch.object(codec, "decode_part", wraps=codec.decode_part) as decodes,
    ):
        codec(noise(1, 40 * HOP))
    assert encodes.call_count == decodes.call_count == 1
