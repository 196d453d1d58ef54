"""How far latents depend on audio and audio on latents, in whole recordings and in parts."""

from unittest import mock

import pytest
import torch
from torch.testing import assert_close
from transformers import DacConfig
from transformers.models.dac.modeling_dac import DacDecoder, DacEncoder
from transformers.models.mimi.modeling_mimi import MimiRotaryEmbedding

from tiny import CLOSE, HOP, RATE, batch_of, noise, tiny_codec, tiny_config
from vpvae_hf import VPCodecModel
from vpvae_hf.models.vp_codec_layers import SymmetricPadding, context_frames

pytestmark = pytest.mark.usefixtures("no_gradients")


def with_whole(codec):
    """The same codec working on recordings of any length as a whole."""
    return tiny_codec(codec.config.quantizer, causal=codec.config.causal, chunk_length_s=1e6)


def test_reconstruction_depends_on_later_audio_unless_causal(codec):
    audio, at = noise(1, 60 * HOP), 30 * HOP + 5
    changed = audio.clone()
    changed[..., at:] = 0
    codec = with_whole(codec)
    was, now = codec(audio).audio_values, codec(changed).audio_values
    assert torch.equal(was[..., : 30 * HOP], now[..., : 30 * HOP]) == codec.config.causal
    assert not torch.equal(was[..., 30 * HOP :], now[..., 30 * HOP :])


def test_nothing_beyond_the_context_has_a_part(codec):
    codec = with_whole(codec)
    frames, context = 150, context_frames(codec.config)
    audio, latents = noise(1, frames * HOP), 0.3 * torch.randn(1, 3, frames)
    other_audio, other_latents = audio.clone(), latents.clone()
    other_audio[..., 75 * HOP : 76 * HOP] *= -1
    other_latents[..., 75] *= -1
    change = [
        (codec.encode(other_audio).latents - codec.encode(audio).latents).abs().amax(dim=(0, 1)),
        (codec.decode_vectors(other_latents.mT) - codec.decode_vectors(latents.mT)).abs().view(frames, HOP).amax(1),
    ]
    for each in change:
        assert each[75] > 1e-3
        reached = (each > 1e-7).nonzero()[:, 0] - 75
        assert reached.max() <= context
        assert -reached.min() <= (0 if codec.config.causal else context)
        # Most of what attention may reach is reached, so that the other tests would see it cut off.
        assert reached.max() >= 20
        assert codec.config.causal or -reached.min() >= 20


@pytest.mark.parametrize(("seconds", "frames"), [(1.0, 180), (0.1, 60), (0.37, 130), (0.02, 40)])
def test_recordings_in_chunks_equal_the_whole(causal, seconds, frames):
    codec, whole = tiny_codec(causal=causal, chunk_length_s=seconds), tiny_codec(causal=causal, chunk_length_s=1e6)
    audio = noise(1, frames * HOP - 41)
    encoded, expected = codec.encode(audio), whole.encode(audio)
    assert_close(encoded.latents, expected.latents, **CLOSE)
    assert torch.equal(encoded.audio_codes, expected.audio_codes)
    made, wanted = (each.decode(expected.audio_codes).audio_values for each in (codec, whole))
    assert_close(made, wanted, **CLOSE)


@pytest.mark.parametrize("ends", [3, 70])
def test_padded_batches_in_chunks_equal_the_whole(causal, ends):
    codec, whole = tiny_codec(causal=causal, chunk_length_s=0.3), tiny_codec(causal=causal, chunk_length_s=1e6)
    lengths = [110 * HOP, ends * HOP - 5]
    audio, mask = batch_of(lengths)
    encoded, expected = codec.encode(audio, mask), whole.encode(audio, mask)
    frames = expected.audio_codes_mask[:, None].expand_as(expected.latents)
    assert torch.isfinite(encoded.latents).all()
    assert_close(encoded.latents[frames], expected.latents[frames], **CLOSE)
    assert torch.equal(encoded.audio_codes, expected.audio_codes)
    made, wanted = (each.decode(expected.audio_codes, mask).audio_values for each in (codec, whole))
    assert_close(made, wanted, **CLOSE)
    assert_close(codec(audio, mask).audio_values, wanted, **CLOSE)


def test_no_part_is_longer_than_a_chunk_with_its_context(causal):
    codec = tiny_codec(causal=causal, chunk_length_s=0.301)  # 50 frames
    sides = context_frames(codec.config) * (1 if causal else 2)
    with mock.patch.object(codec, "encode_part", wraps=codec.encode_part) as encodes:
        latents = codec.latent_vectors(noise(1, 230 * HOP))
    with mock.patch.object(codec, "decode_part", wraps=codec.decode_part) as decodes:
        codec.decode_vectors(latents)
    for frames in (
        [call.args[0].shape[-1] // HOP for call in encodes.call_args_list],
        [call.args[0].shape[1] for call in decodes.call_args_list],
    ):
        assert len(frames) == 5
        assert max(frames) == 50 + sides


def test_late_in_a_long_recording_latents_are_as_exact_as_early():
    """Ten minutes at the default frame rate."""
    settings = {"sampling_rate": 2 * RATE // HOP, "chunk_length_s": 6.0, "num_hidden_layers": 1}
    codec = tiny_codec(downsampling_ratios=[2], **settings)
    frames, context = 100_000, context_frames(codec.config)
    audio = noise(1, 2 * frames)
    latents = codec.encode(audio).latents
    assert latents.shape == (1, 3, frames)
    for start in (5_000, 50_000, 99_000):
        first, end = start - context, start + 300
        excerpt = codec.encode(audio[..., 2 * first : 2 * (end + context)]).latents
        assert_close(latents[..., start:end], excerpt[..., context : context + 300], **CLOSE)


def test_rotations_are_exact_at_late_positions():
    codec = tiny_codec()
    position = 1_000_000
    cos, sin = codec.encoder_transformer.rotary_emb(torch.zeros(1), torch.tensor([[0, position]]))
    dim, base = 16, 10_000.0
    powers = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    angles = torch.cat([position * base**-powers] * 2)
    assert_close(cos[0, 1].double(), angles.cos(), atol=1e-6, rtol=0)
    assert_close(sin[0, 1].double(), angles.sin(), atol=1e-6, rtol=0)
    assert (cos[0, 0] == 1).all()


def test_rotations_are_those_of_transformers_at_early_positions():
    config = tiny_config(rope_parameters={"rope_theta": 500.0})
    positions = torch.arange(100)[None]
    mine = VPCodecModel(config).encoder_transformer.rotary_emb(torch.zeros(1), positions)
    assert_close(mine, MimiRotaryEmbedding(config)(torch.zeros(1), positions), atol=1e-5, rtol=0)


def test_convolutions_are_those_of_dac_for_each_sample_alone():
    """DAC keeps lengths if strides are even."""
    settings = {"downsampling_ratios": [2, 4, 8], "encoder_hidden_size": 4, "decoder_hidden_size": 64}
    codec = tiny_codec(hidden_size=32, **settings)
    config = DacConfig(**settings, upsampling_ratios=[8, 4, 2])
    assert config.hidden_size == 32
    inputs = {"encoder": (DacEncoder, noise(2, 20 * 64), 64, 1), "decoder": (DacDecoder, torch.randn(2, 32, 20), 1, 64)}
    for name, (dac_class, x, hop_in, hop_out) in inputs.items():
        dac, mine = dac_class(config).eval(), codec.get_submodule(name)
        dac.load_state_dict(mine.state_dict())
        assert_close(mine(x, SymmetricPadding(20)), dac(x), atol=5e-6, rtol=0)
        made = mine(x, SymmetricPadding(20, torch.tensor([20, 6])))[1:, :, : 6 * hop_out]
        assert_close(made, dac(x[1:, :, : 6 * hop_in]), atol=5e-6, rtol=0)
