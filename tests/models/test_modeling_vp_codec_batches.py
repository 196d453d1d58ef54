"""Samples of different lengths in one batch."""

from collections import defaultdict

import pytest
import torch
from torch.testing import assert_close
from transformers.modeling_flash_attention_utils import _process_flash_attention_kwargs

from tiny import CLOSE, FSP, HOP, LENGTHS, VP, batch_of, mask_of, noise, tiny_codec

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize(("quantizer", "attention"), [(VP, "eager"), (FSP, "sdpa")], ids=["vp-eager", "fsp-sdpa"])
def test_a_sample_in_a_batch_equals_the_sample_alone(own_codec, attention):
    own_codec.set_attn_implementation(attention)
    audio, mask = batch_of(LENGTHS)
    encoded, output = own_codec.encode(audio, mask), own_codec(audio, mask)
    decoded = own_codec.decode(encoded.audio_codes, mask)
    from_latents = own_codec.decode(encoded.latents, mask, force_not_quantize=True)
    for i, length in enumerate(LENGTHS):
        alone, frames = audio[i : i + 1, :, :length], -(-length // HOP)
        single, reconstruction = own_codec.encode(alone), own_codec(alone)
        assert encoded.audio_codes_mask[i].tolist() == [n < frames for n in range(31)]
        assert_close(encoded.latents[i : i + 1, :, :frames], single.latents, **CLOSE)
        assert torch.equal(encoded.audio_codes[i : i + 1, :, :frames], single.audio_codes)
        for made in (output, decoded):
            assert_close(made.audio_values[i : i + 1, :, :length], reconstruction.audio_values, **CLOSE)
        unquantized = own_codec.decode(single.latents, torch.ones(1, length), force_not_quantize=True)
        assert_close(from_latents.audio_values[i : i + 1, :, :length], unquantized.audio_values, **CLOSE)


def test_beyond_its_end_a_sample_has_code_0_and_silence(codec):
    audio, mask = batch_of(LENGTHS)
    encoded, output = codec.encode(audio, mask), codec(audio, mask)
    beyond = mask[:, None] == 0
    assert (encoded.audio_codes[~encoded.audio_codes_mask[:, None]] == 0).all()
    assert (output.audio_codes[~output.audio_codes_mask[:, None]] == 0).all()
    assert (output.audio_values[beyond] == 0).all()
    assert (codec.decode(encoded.audio_codes, mask).audio_values[beyond] == 0).all()
    assert (output.audio_values[~beyond] != 0).float().mean() > 0.99


def test_what_is_in_the_padding_does_not_matter(codec):
    audio, mask = batch_of(LENGTHS)
    other = torch.where(mask[:, None] == 1, audio, 5 * noise(4, LENGTHS[0], seed=7))
    for ask in (codec.encode, codec):
        one, two = ask(audio, mask), ask(other, mask)
        assert torch.equal(one.audio_codes, two.audio_codes)
        assert torch.equal(one.latents, two.latents)
    codes = codec.encode(audio, mask).audio_codes
    frames = codec.token_mask(mask)[:, None]
    other_codes = torch.where(frames, codes, 5)
    assert torch.equal(codec.decode(codes, mask).audio_values, codec.decode(other_codes, mask).audio_values)


def test_padding_shorter_than_a_hop_is_no_audio_either(codec):
    lengths = [5 * HOP, 4 * HOP + 1]
    audio, mask = batch_of(lengths)
    encoded, output = codec.encode(audio, mask), codec(audio, mask)
    assert encoded.audio_codes_mask is None
    alone = audio[1:, :, : 4 * HOP + 1]
    assert_close(encoded.latents[1:], codec.encode(alone).latents, **CLOSE)
    assert_close(output.audio_values[1:, :, : 4 * HOP + 1], codec(alone).audio_values, **CLOSE)
    assert (output.audio_values[1, :, 4 * HOP + 1 :] == 0).all()
    decoded = codec.decode(encoded.audio_codes, mask).audio_values
    assert_close(decoded, output.audio_values, **CLOSE)


def test_flash_attention_is_given_the_window_of_the_masks(causal):
    """It is told how far to look, since it takes no mask."""
    codec = tiny_codec(causal=causal)
    for layer in (*codec.encoder_transformer.layers, *codec.decoder_transformer.layers):
        asked = _process_flash_attention_kwargs(
            query_length=50,
            key_length=50,
            is_causal=layer.self_attn.is_causal,
            sliding_window=layer.self_attn.sliding_window,
            supports_mapping=defaultdict(lambda: True),
        )
        assert asked["causal"] == causal
        # With causal, the present code is one of the 8 that are attended to.
        assert asked["window_size"][0] == (7 if causal else 8)
        assert causal or asked["window_size"][1] == 8


@pytest.mark.parametrize(
    "mask",
    [
        mask_of(LENGTHS).bool(),
        mask_of(LENGTHS).float(),
        mask_of(LENGTHS)[:, None],
        200 * mask_of(LENGTHS).to(torch.uint8),
    ],
    ids=["bool", "float", "with channel", "200 for audio"],
)
def test_masks_of_other_types(vp_codec, mask):
    audio, usual = batch_of(LENGTHS)
    assert torch.equal(vp_codec.encode(audio, mask).audio_codes, vp_codec.encode(audio, usual).audio_codes)
    assert torch.equal(vp_codec(audio, mask).audio_values, vp_codec(audio, usual).audio_values)
    codes = vp_codec.encode(audio, usual).audio_codes
    assert torch.equal(vp_codec.decode(codes, mask).audio_values, vp_codec.decode(codes, usual).audio_values)
