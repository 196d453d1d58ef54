"""The audio tokenizer through its public API."""

import pytest
import torch
from torch.testing import assert_close

from tiny import CLOSE, HOP, LENGTHS, batch_of, noise, tiny_codec
from vpvae_hf import CodebookNotFittedError, VPCodecModel

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("length", [HOP, HOP + 1, 2 * HOP - 1, 2 * HOP, 2 * HOP + 1, 7 * HOP + 50])
def test_output_is_exactly_as_long_as_the_input(codec, length):
    audio, mask = noise(2, length), torch.ones(2, length)
    encoded, output = codec.encode(audio), codec(audio)
    assert encoded.audio_codes.shape == (2, 1, -(-length // HOP))
    assert encoded.audio_codes_mask is None
    assert encoded.latents.shape == output.latents.shape == (2, 3, -(-length // HOP))
    assert output.sample is output.audio_values
    assert output.audio_values.shape == audio.shape
    assert output.audio_values.abs().max() <= 1
    assert codec(audio, mask).audio_values.shape == audio.shape
    assert codec.decode(encoded.audio_codes, mask).audio_values.shape == audio.shape
    assert codec.decode(encoded.audio_codes).audio_values.shape == (2, 1, -(-length // HOP) * HOP)


def test_forward_in_eval_mode_is_encode_then_decode(codec):
    audio, mask = batch_of(LENGTHS)
    encoded, output = codec.encode(audio, mask), codec(audio, mask)
    assert torch.equal(output.audio_codes, encoded.audio_codes)
    assert torch.equal(output.audio_codes_mask, encoded.audio_codes_mask)
    assert_close(output.audio_values, codec.decode(encoded.audio_codes, mask).audio_values, **CLOSE)
    assert output.loss == 0
    assert "quantizer/quantization_error_rms" in output.metrics


def test_a_last_hop_that_is_not_full_is_filled_with_zeros(codec):
    audio = noise(1, 5 * HOP + 13)
    filled = torch.nn.functional.pad(audio, (0, HOP - 13))
    assert torch.equal(codec.encode(audio).latents, codec.encode(filled).latents)


def test_dtype_tells_codes_from_latents(codec):
    encoded = codec.encode(noise(2, 9 * HOP))
    from_codes = codec.decode(encoded.audio_codes).audio_values
    assert torch.equal(codec.decode(encoded.audio_codes.int(), force_not_quantize=True).audio_values, from_codes)
    assert torch.equal(codec.decode(encoded.latents).audio_values, from_codes)
    unquantized = codec.decode(encoded.latents, force_not_quantize=True).audio_values
    assert not torch.equal(unquantized, from_codes)
    vectors = codec.latent_vectors(noise(2, 9 * HOP))
    assert_close(codec.decode_vectors(vectors), unquantized)
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, encoded.latents.transpose(1, 2))


def test_latents_are_decoded_to_the_length_of_the_mask(codec):
    encoded, mask = codec.encode(noise(2, 4 * HOP + 5)), torch.ones(2, 4 * HOP + 5)
    for force_not_quantize in (False, True):
        decoded = codec.decode(encoded.latents, mask, force_not_quantize=force_not_quantize)
        assert decoded.audio_values.shape == (2, 1, 4 * HOP + 5)


def test_other_layouts_of_the_same_audio_have_the_same_codes(codec):
    audio = noise(2, 10 * HOP)
    latents = codec.encode(audio).latents
    strided = audio.repeat_interleave(2, dim=-1)[..., ::2]
    transposed = audio.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for same in (strided, transposed, audio.double()):
        assert torch.equal(codec.encode(same).latents, latents)


@pytest.mark.parametrize(
    "settings",
    [
        {"downsampling_ratios": [1, 5, 3]},
        {"downsampling_ratios": [7]},
        {"num_hidden_layers": 0},
        {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True},
        {"head_dim": 6, "hidden_act": "silu"},
        {"sliding_window": 1},
        {"use_cache": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_other_architectures(causal, settings):
    codec = tiny_codec(causal=causal, **settings)
    hop = codec.config.hop_length
    lengths = [11 * hop + hop // 2, 2 * hop]
    audio, mask = batch_of(lengths)
    output = codec(audio, mask)
    assert output.audio_values.shape == audio.shape
    alone = codec(audio[1:, :, : 2 * hop])
    assert torch.equal(output.audio_codes[1:, :, :2], alone.audio_codes)
    assert_close(output.audio_values[1:, :, : 2 * hop], alone.audio_values, **CLOSE)


def test_autocast_reaches_no_quantizer(codec):
    audio = noise(1, 12 * HOP)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = codec.encode(audio)
        assert codec(audio).latents.dtype == torch.float32
    assert torch.equal(codec.quantize.encode(encoded.latents.mT), encoded.audio_codes[:, 0])


def test_a_codec_made_from_the_config_of_a_fitted_one_has_no_codes(vp_codec):
    with pytest.raises(CodebookNotFittedError, match="made from the config of another; load the other with"):
        VPCodecModel(vp_codec.config).eval().encode(noise(1, HOP))
