"""The audio tokenizer through its public API."""

from collections import defaultdict

import pytest
import torch
from torch.testing import assert_close
from transformers.modeling_flash_attention_utils import _process_flash_attention_kwargs

from tiny import CLOSE, FSP, HOP, LENGTHS, VP, batch_of, mask_of, noise, tiny_codec
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
    with pytest.raises(CodebookNotFittedError, match="made from another model's config; load that model with"):
        VPCodecModel(vp_codec.config).eval().encode(noise(1, HOP))


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


def test_a_single_waveform_is_a_batch_of_one(vp_codec):
    batch, mask = batch_of([4 * HOP])
    wave = batch[0, 0]
    codes, output = vp_codec.tokenize(batch, mask), vp_codec(batch, mask)
    for single in (wave, wave[None], wave.double().numpy(), wave[None].numpy(), wave.tolist(), [wave], [wave.numpy()]):
        assert torch.equal(vp_codec.encode(single).audio_codes, codes[:, None])
    for one_mask in (mask[0], mask.numpy(), mask[0].bool().numpy(), mask.tolist()):
        assert torch.equal(vp_codec.tokenize(wave, one_mask), codes)
        assert torch.equal(vp_codec(wave[None], one_mask).audio_values, output.audio_values)
        assert torch.equal(vp_codec.decode(codes[:, None].numpy(), one_mask).audio_values, output.audio_values)
    two = noise(2, 4 * HOP)
    assert torch.equal(vp_codec.tokenize([two[0, 0], two[1, 0].numpy()]), vp_codec.tokenize(two))


@pytest.mark.parametrize(
    ("audio", "error", "message"),
    [
        (torch.zeros(2, 960), ValueError, r"\[B, 1, T\], got shape \(2, 960\), which looks like a batch.*x\[:, None\]"),
        (torch.zeros(960, 1).numpy(), ValueError, r"got shape \(960, 1\).*\[T, 1\] as x.mT"),
        (torch.zeros(2, 2, 960), ValueError, r"got shape \(2, 2, 960\).*several channels.*as their mean"),
        (torch.zeros(1, 1, 960).short(), TypeError, r"floating point, got torch\.int16; divide samples of 16 bits"),
        (20_000 * noise(1, 960), ValueError, "audio samples reach from .* beyond the limit of 10.*by 32768"),
        ([torch.zeros(960), torch.zeros(500)], ValueError, r"must have one shape, got 2 of shapes \(960,\), \(500,\)"),
        (torch.full((1, 1, 960), torch.nan), ValueError, r"960 of 960 audio samples are NaN or infinite; audio"),
        (torch.zeros(0, 1, 960), ValueError, r"the batch is empty: audio of shape \(0, 1, 960\)"),
        (torch.zeros(1, 1, 95), ValueError, r"at least 96 samples.*got shape \(1, 1, 95\); append zeros"),
    ],
)
def test_bad_audio_is_refused(vp_codec, audio, error, message):
    for ask in (vp_codec.encode, vp_codec, vp_codec.latent_vectors):
        with pytest.raises(error, match=message):
            ask(audio)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (mask_of([960, 500]).flip(-1), "ones followed by zeros; pad at the end"),
        (torch.ones(3, 960), r"padding_mask must be \[2, 960\].*got \(3, 960\)"),
        (torch.ones(2, 2, 960), r"padding_mask must be \[2, 960\].*got \(2, 2, 960\)"),
        (mask_of([960, 95]), "at least 96 audio samples.*got 95; leave it out, or count some of the padding"),
    ],
)
def test_bad_masks_are_refused(vp_codec, mask, message):
    for ask in (vp_codec.encode, vp_codec, vp_codec.latent_vectors):
        with pytest.raises(ValueError, match=message):
            ask(noise(2, 960), mask)


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        (torch.tensor([[[0, 16]]]), ValueError, r"codes must lie in 0\.\.15, got 0\.\.16; were they made with"),
        (torch.zeros(1, 2, 5).long(), ValueError, r"codes \[B, 1, N\] of an integer dtype.*int64 of shape \(1, 2, 5\)"),
        (torch.zeros(1, 1, 0).long(), ValueError, r"the batch is empty: codes or latents of shape \(1, 1, 0\)"),
        (torch.zeros(1, 5, 3), ValueError, r"latents \[B, 3, N\].*got torch\.float32 of shape \(1, 5, 3\)"),
        (torch.zeros(1, 1, 5).bool(), TypeError, r"codes or latents must be real numbers, got torch\.bool"),
        (torch.full((1, 3, 5), torch.nan), ValueError, "15 of 15 latent values are NaN or infinite"),
    ],
)
def test_bad_codes_and_latents_are_refused(vp_codec, codes, error, message):
    with pytest.raises(error, match=message):
        vp_codec.decode(codes)
    with pytest.raises(error, match=message):
        vp_codec.decode(codes, force_not_quantize=True)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 5 * HOP + 1), r"481 samples long, 5 codes stand for 385\.\.480; give the mask that the codes"),
        (torch.ones(2, 5 * HOP), r"padding_mask must be \[1, T\].*got \(2, 480\)"),
    ],
)
def test_masks_that_do_not_belong_to_the_codes_are_refused(vp_codec, mask, message):
    for given in (torch.zeros(1, 1, 5).long(), torch.zeros(1, 3, 5)):
        with pytest.raises(ValueError, match=message):
            vp_codec.decode(given, mask)
