"""The audio tokenizer through its public API."""

from collections import defaultdict

import pytest
import torch
from tiny_codecs import CLOSE, FSP, HOP, RATE, VP, fill_queue, mask_of, noise, tiny_codec, tiny_config
from torch.testing import assert_close
from transformers import DacConfig
from transformers.modeling_flash_attention_utils import _process_flash_attention_kwargs
from transformers.models.dac.modeling_dac import DacDecoder, DacEncoder

from vpvae_hf import CodebookNotFittedError, VPCodecModel
from vpvae_hf.models import VPCodecDecoderOutput, VPCodecEncoderOutput, VPCodecOutput
from vpvae_hf.models.audio_convolutions import SymmetricPadding, context_frames
from vpvae_hf.quantizers import QUANTIZERS

# The first sample goes on for long after the others are out of reach of its attention windows.
LENGTHS = [30 * HOP + 7, 3 * HOP, 2 * HOP - 1, HOP]


@pytest.fixture(params=[VP, FSP], ids=["vp", "fsp"])
def quantizer(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["symmetric", "causal"])
def causal(request):
    return request.param


@pytest.fixture
def codec(quantizer, causal):
    return tiny_codec(quantizer, causal=causal)


def batch_of(lengths, seed=1):
    return noise(len(lengths), max(lengths), seed), mask_of(lengths)


def training(codec):
    fill_queue(codec)
    return codec.train()


def with_whole(codec, **settings):
    """The same codec working on recordings of any length as a whole."""
    return tiny_codec(codec.config.quantizer, causal=codec.config.causal, chunk_length_s=1e6, **settings)


class TestOutputs:
    def test_shapes(self, codec):
        audio = noise(2, 10 * HOP)
        encoded = codec.encode(audio)
        assert isinstance(encoded, VPCodecEncoderOutput)
        assert encoded.audio_codes.shape == (2, 1, 10)
        assert encoded.audio_codes.dtype == torch.int64
        assert encoded.audio_codes_mask is None
        assert encoded.latents.shape == (2, 3, 10)
        decoded = codec.decode(encoded.audio_codes)
        assert isinstance(decoded, VPCodecDecoderOutput)
        assert decoded.audio_values.shape == audio.shape
        assert decoded.audio_values.abs().max() <= 1
        whole = codec(audio)
        assert isinstance(whole, VPCodecOutput)
        assert whole.audio_values.shape == audio.shape
        assert whole.latents.shape == (2, 3, 10)
        assert whole.sample is whole.audio_values
        assert codec.latent_vectors(audio).shape == (2, 10, 3)
        assert codec.decode_vectors(torch.zeros(2, 10, 3)).shape == audio.shape

    @pytest.mark.parametrize("length", [HOP, HOP + 1, 2 * HOP - 1, 2 * HOP, 2 * HOP + 1, 7 * HOP + 50])
    def test_output_is_exactly_as_long_as_the_input(self, codec, length):
        audio, mask = noise(2, length), torch.ones(2, length)
        encoded = codec.encode(audio)
        assert encoded.audio_codes.shape == (2, 1, -(-length // HOP))
        assert codec(audio).audio_values.shape == audio.shape
        assert codec(audio, mask).audio_values.shape == audio.shape
        assert codec.decode(encoded.audio_codes, mask).audio_values.shape == audio.shape
        assert codec.decode(encoded.audio_codes).audio_values.shape == (2, 1, -(-length // HOP) * HOP)

    def test_forward_in_eval_mode_is_encode_then_decode(self, codec):
        audio, mask = batch_of(LENGTHS)
        encoded, output = codec.encode(audio, mask), codec(audio, mask)
        assert torch.equal(output.audio_codes, encoded.audio_codes)
        assert torch.equal(output.audio_codes_mask, encoded.audio_codes_mask)
        assert_close(output.audio_values, codec.decode(encoded.audio_codes, mask).audio_values, **CLOSE)
        assert output.loss == 0
        assert "quantizer/quantization_error_rms" in output.metrics

    def test_codes_vary_and_tell_the_audio(self, codec):
        codes = codec.encode(noise(1, 60 * HOP)).audio_codes
        assert len(codes.unique()) > 4
        assert not torch.equal(codes, codec.encode(noise(1, 60 * HOP, seed=2)).audio_codes)
        audio = codec.decode(codes).audio_values
        assert not torch.equal(audio, codec.decode(codes.flip(-1)).audio_values)

    def test_a_last_hop_that_is_not_full_is_filled_with_zeros(self, codec):
        audio = noise(1, 5 * HOP + 13)
        filled = torch.nn.functional.pad(audio, (0, HOP - 13))
        assert torch.equal(codec.encode(audio).latents, codec.encode(filled).latents)

    def test_dtype_tells_codes_from_latents(self, codec):
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

    def test_latents_are_decoded_to_the_length_of_the_mask(self, codec):
        encoded, mask = codec.encode(noise(2, 4 * HOP + 5)), torch.ones(2, 4 * HOP + 5)
        for force_not_quantize in (False, True):
            decoded = codec.decode(encoded.latents, mask, force_not_quantize=force_not_quantize)
            assert decoded.audio_values.shape == (2, 1, 4 * HOP + 5)

    def test_other_layouts_of_the_same_audio_have_the_same_codes(self, codec):
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
    def test_other_architectures(self, causal, settings):
        codec = tiny_codec(causal=causal, **settings)
        hop = codec.config.hop_length
        lengths = [11 * hop + hop // 2, 2 * hop]
        audio, mask = batch_of(lengths)
        output = codec(audio, mask)
        assert output.audio_values.shape == audio.shape
        alone = codec(audio[1:, :, : 2 * hop])
        assert torch.equal(output.audio_codes[1:, :, :2], alone.audio_codes)
        assert_close(output.audio_values[1:, :, : 2 * hop], alone.audio_values, **CLOSE)


class TestBatches:
    @pytest.mark.parametrize(("quantizer", "attention"), [(VP, "eager"), (FSP, "sdpa")], ids=["vp-eager", "fsp-sdpa"])
    def test_a_sample_in_a_batch_equals_the_sample_alone(self, codec, attention):
        codec.set_attn_implementation(attention)
        audio, mask = batch_of(LENGTHS)
        encoded, output = codec.encode(audio, mask), codec(audio, mask)
        decoded = codec.decode(encoded.audio_codes, mask)
        from_latents = codec.decode(encoded.latents, mask, force_not_quantize=True)
        for i, length in enumerate(LENGTHS):
            alone, frames = audio[i : i + 1, :, :length], -(-length // HOP)
            single, reconstruction = codec.encode(alone), codec(alone)
            assert encoded.audio_codes_mask[i].tolist() == [n < frames for n in range(31)]
            assert_close(encoded.latents[i : i + 1, :, :frames], single.latents, **CLOSE)
            assert torch.equal(encoded.audio_codes[i : i + 1, :, :frames], single.audio_codes)
            for made in (output, decoded):
                assert_close(made.audio_values[i : i + 1, :, :length], reconstruction.audio_values, **CLOSE)
            unquantized = codec.decode(single.latents, torch.ones(1, length), force_not_quantize=True)
            assert_close(from_latents.audio_values[i : i + 1, :, :length], unquantized.audio_values, **CLOSE)

    def test_beyond_its_end_a_sample_has_code_0_and_silence(self, codec):
        audio, mask = batch_of(LENGTHS)
        encoded, output = codec.encode(audio, mask), codec(audio, mask)
        beyond = mask[:, None] == 0
        assert (encoded.audio_codes[~encoded.audio_codes_mask[:, None]] == 0).all()
        assert (output.audio_codes[~output.audio_codes_mask[:, None]] == 0).all()
        assert (output.audio_values[beyond] == 0).all()
        assert (codec.decode(encoded.audio_codes, mask).audio_values[beyond] == 0).all()
        assert (output.audio_values[~beyond] != 0).float().mean() > 0.99

    def test_what_is_in_the_padding_does_not_matter(self, codec):
        audio, mask = batch_of(LENGTHS)
        other = torch.where(mask[:, None] == 1, audio, 5 * noise(4, LENGTHS[0], seed=7))
        for ask in (codec.encode, codec):
            one, two = ask(audio, mask), ask(other, mask)
            assert torch.equal(one.audio_codes, two.audio_codes)
            assert torch.equal(one.latents, two.latents)
        codes = codec.encode(audio, mask).audio_codes
        frames = codec.get_audio_codes_mask(mask)[:, None]
        other_codes = torch.where(frames, codes, 5)
        assert torch.equal(codec.decode(codes, mask).audio_values, codec.decode(other_codes, mask).audio_values)

    def test_padding_shorter_than_a_hop_is_no_audio_either(self, codec):
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

    def test_attention_implementations_agree(self, codec):
        audio, mask = batch_of(LENGTHS)
        codec.set_attn_implementation("eager")
        eager, eager_whole = codec.encode(audio, mask), codec.encode(audio)
        codec.set_attn_implementation("sdpa")
        sdpa, sdpa_whole = codec.encode(audio, mask), codec.encode(audio)
        frames = eager.audio_codes_mask[:, None].expand_as(eager.latents)
        assert_close(eager.latents[frames], sdpa.latents[frames], **CLOSE)
        assert_close(eager_whole.latents, sdpa_whole.latents, **CLOSE)
        assert torch.equal(eager.audio_codes, sdpa.audio_codes)

    def test_flash_attention_is_given_the_window_of_the_masks(self, causal):
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
    def test_masks_of_other_types(self, mask):
        codec = tiny_codec()
        audio, usual = batch_of(LENGTHS)
        assert torch.equal(codec.encode(audio, mask).audio_codes, codec.encode(audio, usual).audio_codes)
        assert torch.equal(codec(audio, mask).audio_values, codec(audio, usual).audio_values)
        codes = codec.encode(audio, usual).audio_codes
        assert torch.equal(codec.decode(codes, mask).audio_values, codec.decode(codes, usual).audio_values)

    def test_codes_mask_is_that_of_encode(self):
        codec = tiny_codec()
        audio, mask = batch_of(LENGTHS)
        frames = codec.get_audio_codes_mask(mask)
        assert frames.dtype == torch.bool
        assert torch.equal(frames, codec.encode(audio, mask).audio_codes_mask)
        assert frames.sum(dim=1).tolist() == [31, 3, 2, 1]
        assert codec.get_audio_codes_mask(torch.ones(2, 5 * HOP + 1)).all()


class TestReach:
    """How far latents depend on audio, and audio on latents."""

    def test_latents_depend_on_later_audio_unless_causal(self, codec):
        audio, at = noise(1, 60 * HOP), 30 * HOP + 5
        changed = audio.clone()
        changed[..., at:] = -changed[..., at:]
        change = (codec.encode(changed).latents - codec.encode(audio).latents).abs().amax(dim=(0, 1))
        assert (change[30:40] > 1e-4).all()
        if codec.config.causal:
            assert change[:30].max() == 0
        else:
            assert (change[20:30] > 1e-4).all()

    def test_audio_depends_on_later_latents_unless_causal(self, codec):
        latents = codec.encode(noise(1, 60 * HOP)).latents
        changed = latents.clone()
        changed[..., 30:] = -changed[..., 30:]
        was, now = (codec.decode(x, force_not_quantize=True).audio_values[0, 0] for x in (latents, changed))
        change = (now - was).abs().view(60, HOP).amax(dim=1)
        assert (change[30:40] > 1e-4).all()
        if codec.config.causal:
            assert change[:30].max() == 0
        else:
            assert (change[20:30] > 1e-4).all()

    def test_reconstruction_depends_on_later_audio_unless_causal(self, codec):
        audio, at = noise(1, 60 * HOP), 30 * HOP + 5
        changed = audio.clone()
        changed[..., at:] = 0
        codec = with_whole(codec)
        was, now = codec(audio).audio_values, codec(changed).audio_values
        assert torch.equal(was[..., : 30 * HOP], now[..., : 30 * HOP]) == codec.config.causal
        assert not torch.equal(was[..., 30 * HOP :], now[..., 30 * HOP :])

    def test_nothing_beyond_the_context_has_a_part(self, codec):
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

    @torch.no_grad()
    @pytest.mark.parametrize(("seconds", "frames"), [(1.0, 180), (0.1, 60), (0.37, 130), (0.02, 40)])
    def test_recordings_in_chunks_equal_the_whole(self, causal, seconds, frames):
        codec, whole = tiny_codec(causal=causal, chunk_length_s=seconds), tiny_codec(causal=causal, chunk_length_s=1e6)
        audio = noise(1, frames * HOP - 41)
        encoded, expected = codec.encode(audio), whole.encode(audio)
        assert_close(encoded.latents, expected.latents, **CLOSE)
        assert torch.equal(encoded.audio_codes, expected.audio_codes)
        made, wanted = (each.decode(expected.audio_codes).audio_values for each in (codec, whole))
        assert_close(made, wanted, **CLOSE)

    @torch.no_grad()
    @pytest.mark.parametrize("ends", [3, 70])
    def test_padded_batches_in_chunks_equal_the_whole(self, causal, ends):
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

    @torch.no_grad()
    def test_no_part_is_longer_than_a_chunk_with_its_context(self, causal, monkeypatch):
        codec = tiny_codec(causal=causal, chunk_length_s=0.301)  # 50 frames
        lengths = {"encode_part": [], "decode_part": []}
        for name, seen in lengths.items():

            def spied(x, *args, original=getattr(codec, name), seen=seen, **kwargs):
                seen.append(x.shape[-1] // HOP if x.shape[1] == 1 else x.shape[1])
                return original(x, *args, **kwargs)

            monkeypatch.setattr(codec, name, spied)
        codec(noise(1, 230 * HOP))
        sides = context_frames(codec.config) * (1 if causal else 2)
        for seen in lengths.values():
            assert len(seen) == 5
            assert max(seen) == 50 + sides

    @torch.no_grad()
    def test_late_in_a_long_recording_latents_are_as_exact_as_early(self):
        """Ten minutes at the default frame rate."""
        codec = tiny_codec(downsampling_ratios=[2], sampling_rate=2 * RATE // HOP, chunk_length_s=6.0)
        frames, context = 100_000, context_frames(codec.config)
        audio = noise(1, 2 * frames)
        latents = codec.encode(audio).latents
        assert latents.shape == (1, 3, frames)
        for start in (5_000, 50_000, 99_000):
            first, end = start - context, start + 300
            excerpt = codec.encode(audio[..., 2 * first : 2 * (end + context)]).latents
            assert_close(latents[..., start:end], excerpt[..., context : context + 300], **CLOSE)

    def test_rotations_are_exact_at_late_positions(self):
        codec = tiny_codec()
        position = 1_000_000
        cos, sin = codec.encoder_transformer.rotary_emb(torch.zeros(1), torch.tensor([[0, position]]))
        dim, base = 16, 10_000.0
        powers = torch.arange(0, dim, 2, dtype=torch.float64) / dim
        angles = torch.cat([position * base**-powers] * 2)
        assert_close(cos[0, 1].double(), angles.cos(), atol=1e-6, rtol=0)
        assert_close(sin[0, 1].double(), angles.sin(), atol=1e-6, rtol=0)
        assert (cos[0, 0] == 1).all()

    def test_rotations_are_those_of_transformers_at_early_positions(self):
        from transformers.models.mimi.modeling_mimi import MimiRotaryEmbedding

        config = tiny_config(rope_parameters={"rope_theta": 500.0})
        positions = torch.arange(100)[None]
        mine = VPCodecModel(config).encoder_transformer.rotary_emb(torch.zeros(1), positions)
        assert_close(mine, MimiRotaryEmbedding(config)(torch.zeros(1), positions), atol=1e-5, rtol=0)


class TestDac:
    """Where strides are even DAC keeps lengths, and the convolutions are DAC's."""

    @pytest.fixture
    def models(self):
        settings = {"downsampling_ratios": [2, 4, 8], "encoder_hidden_size": 4, "decoder_hidden_size": 64}
        codec = tiny_codec(hidden_size=32, **settings)
        config = DacConfig(**settings, upsampling_ratios=[8, 4, 2])
        assert config.hidden_size == 32
        encoder, decoder = DacEncoder(config).eval(), DacDecoder(config).eval()
        encoder.load_state_dict(codec.encoder.state_dict())
        decoder.load_state_dict(codec.decoder.state_dict())
        return codec, encoder, decoder

    def test_encoder_equals_that_of_transformers(self, models):
        codec, encoder, _ = models
        audio = noise(2, 20 * 64)
        assert_close(codec.encoder(audio, SymmetricPadding(20)), encoder(audio), atol=1e-6, rtol=0)

    def test_decoder_equals_that_of_transformers(self, models):
        codec, _, decoder = models
        features = torch.randn(2, 32, 20)
        assert_close(codec.decoder(features, SymmetricPadding(20)), decoder(features), atol=1e-6, rtol=0)

    def test_padded_samples_are_what_dac_makes_of_each_alone(self, models):
        codec, encoder, decoder = models
        audio, features = noise(2, 20 * 64), torch.randn(2, 32, 20)
        padding = SymmetricPadding(20, torch.tensor([20, 6]))
        made = codec.encoder(audio, padding)[1:, :, :6]
        assert_close(made, encoder(audio[1:, :, : 6 * 64]), atol=1e-6, rtol=0)
        made = codec.decoder(features, padding)[1:, :, : 6 * 64]
        assert_close(made, decoder(features[1:, :, :6]), atol=1e-6, rtol=0)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_the_quantizer_stays_float32(self, codec, dtype):
        audio, mask = batch_of([12 * HOP, 5 * HOP])
        before = {name: buffer.clone() for name, buffer in codec.quantize.named_buffers()}
        latents = codec.encode(audio, mask).latents
        codec.to(dtype)
        assert codec.dtype == dtype
        for name, buffer in codec.quantize.named_buffers():
            assert torch.equal(buffer, before[name])
        encoded, output = codec.encode(audio, mask), codec(audio, mask)
        assert encoded.latents.dtype == dtype
        assert output.audio_values.dtype == dtype
        assert codec.decode(encoded.audio_codes).audio_values.dtype == dtype
        assert codec.latent_vectors(audio).dtype == torch.float32
        frames = encoded.audio_codes_mask
        assert_close(
            encoded.latents.mT[frames].float(), latents.mT[frames], atol=0.2 if dtype == torch.bfloat16 else 0.03, rtol=0
        )
        again = codec.quantize.encode(encoded.latents.mT)
        assert torch.equal(again[frames], encoded.audio_codes[:, 0][frames])
        assert torch.equal(output.audio_codes, encoded.audio_codes)

    def test_equal_latents_have_equal_codes_in_any_precision(self, quantizer):
        codec = tiny_codec(quantizer)
        latents = codec.encode(noise(1, 40 * HOP)).latents.bfloat16()
        codes = codec.quantize.encode(latents.mT)
        assert torch.equal(codec.to(torch.bfloat16).quantize.encode(latents.mT), codes)

    def test_autocast_reaches_no_quantizer(self, codec):
        audio = noise(1, 12 * HOP)
        with torch.autocast("cpu", torch.bfloat16):
            encoded = codec.encode(audio)
            assert codec(audio).latents.dtype == torch.float32
        assert torch.equal(codec.quantize.encode(encoded.latents.mT), encoded.audio_codes[:, 0])


class TestTraining:
    def test_forward_perturbs(self, codec):
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

    def test_forward_is_determined_by_its_generator(self, codec):
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

    def test_gradient_reaches_every_parameter(self, codec):
        output = training(codec)(noise(2, 20 * HOP))
        (output.audio_values.square().mean() + output.loss).backward()
        for name, parameter in codec.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name

    @pytest.mark.parametrize(("quantizer", "attention"), [(VP, "sdpa"), (FSP, "eager")], ids=["vp-sdpa", "fsp-eager"])
    def test_gradient_is_finite_in_padded_batches(self, codec, attention):
        codec.set_attn_implementation(attention)
        output = training(codec)(*batch_of(LENGTHS))
        (output.audio_values.square().mean() + output.loss).backward()
        assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in codec.parameters())

    def test_gradient_of_a_padded_sample_is_that_of_the_sample_alone(self, causal):
        gradients = []
        for padded in (True, False):
            codec = tiny_codec(causal=causal).train()  # with an empty queue nothing is perturbed
            audio, mask = batch_of([30 * HOP, 4 * HOP])
            made = codec(audio, mask) if padded else codec(audio[1:, :, : 4 * HOP])
            made.audio_values[-1].square().sum().backward()
            gradients.append([parameter.grad for parameter in codec.parameters()])
        assert_close(*gradients, atol=1e-4, rtol=1e-3)

    def test_padding_does_not_enter_the_quantizer(self, codec):
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

    def test_padding_does_not_enter_the_queue(self):
        codec = tiny_codec().train()
        codec(*batch_of(LENGTHS))
        assert codec.quantize.queue.pushed == 31 + 3 + 2 + 1
        vectors = codec.eval().latent_vectors(*batch_of(LENGTHS))
        frames = codec.get_audio_codes_mask(mask_of(LENGTHS))
        queued = codec.quantize.queue.latents()
        assert_close(queued.sort(dim=0).values, vectors[frames].sort(dim=0).values, **CLOSE)

    def test_quantization_error_is_measured_without_padding(self, codec):
        audio, mask = batch_of(LENGTHS)
        measured = codec(audio, mask).metrics["quantizer/quantization_error_rms"]
        encoded = codec.encode(audio, mask)
        latents = encoded.latents.mT[encoded.audio_codes_mask]
        error = codec.quantize.decode(codec.quantize.encode(latents)) - latents
        assert_close(measured, error.square().sum(dim=-1).mean().sqrt())

    def test_gradient_checkpointing_changes_nothing_but_runs_twice(self, codec):
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

    def test_training_takes_recordings_as_a_whole(self):
        """Longer than a chunk too, so that the gradient is that of the whole."""
        codec, whole = tiny_codec(chunk_length_s=0.1).train(), tiny_codec(chunk_length_s=1e6).train()
        audio = noise(1, 40 * HOP)
        assert torch.equal(codec(audio).audio_values, whole(audio).audio_values)


class TestQuantizers:
    def test_every_kind_works(self, causal):
        for kind in QUANTIZERS:
            codec = tiny_codec({"kind": kind, "codebook_size": 64}, causal=causal)
            codes = codec.encode(noise(1, 12 * HOP)).audio_codes
            assert codec.decode(codes).audio_values.shape == (1, 1, 12 * HOP)
            assert codec.config.codebook_size == codec.quantize.codebook_size
            assert codec.config.codebook_dim == codec.quantize.latent_dim

    def test_setting_a_codebook_changes_model_and_config(self):
        codec = tiny_codec(fitted=False)
        assert not codec.config.quantizer["fitted"]
        codebook = torch.randn(40, 3)
        codec.set_codebook(codebook)
        assert torch.equal(codec.quantize.codebook, codebook)
        assert codec.config.codebook_size == 40
        assert codec.config.quantizer["fitted"]

    def test_setting_a_quantizer_of_the_same_dimension_keeps_the_projections(self):
        codec = tiny_codec()
        weight = codec.quant_proj.weight.clone()
        codec.set_quantizer(FSP)
        assert torch.equal(codec.quant_proj.weight, weight)
        assert codec.config.quantizer["kind"] == "fsp"
        assert codec.config.codebook_size == 36
        assert codec.encode(noise(1, 4 * HOP)).audio_codes.max() < 36

    def test_setting_a_quantizer_of_another_dimension_replaces_the_projections(self):
        codec = tiny_codec().to(torch.bfloat16)
        codec.set_quantizer({"kind": "vp", "codebook_size": 32, "latent_dim": 5})
        assert codec.config.codebook_dim == 5
        assert not codec.quant_proj.training
        assert codec.quant_proj.weight.dtype == torch.bfloat16
        with pytest.raises(CodebookNotFittedError):
            codec.encode(noise(1, 4 * HOP))
        codec.set_codebook(torch.randn(32, 5))
        encoded = codec.encode(noise(1, 4 * HOP))
        assert encoded.latents.shape == (1, 5, 4)
        assert codec.decode(encoded.audio_codes).audio_values.shape == (1, 1, 4 * HOP)

    def test_settings_copied_from_a_fitted_codec_do_not_make_a_fitted_one(self):
        codec, other = tiny_codec(), tiny_codec(FSP)
        other.set_quantizer(codec.config.quantizer)
        with pytest.raises(CodebookNotFittedError):
            other.encode(noise(1, 4 * HOP))
        assert not other.config.quantizer["fitted"]

    def test_invalid_settings_leave_the_codec_as_it_was(self):
        codec = tiny_codec()
        codes, settings = codec.encode(noise(1, 9 * HOP)).audio_codes, dict(codec.config.quantizer)
        for wrong in ({"kind": "vq"}, {"kind": "vp", "codebook_size": 1}, {"kind": "fsp", "levels": [1]}):
            with pytest.raises(ValueError, match=r"unknown quantizer kind 'vq'|at least 2"):
                codec.set_quantizer(wrong)
        assert codec.config.quantizer == settings
        assert torch.equal(codec.encode(noise(1, 9 * HOP)).audio_codes, codes)

    def test_without_a_codebook_there_are_latents_but_no_codes(self):
        codec = tiny_codec(fitted=False)
        audio = noise(1, 4 * HOP)
        for ask in (codec.encode, codec):
            with pytest.raises(CodebookNotFittedError, match=r"fit_codebook\(model, batches\)"):
                ask(audio)
        with pytest.raises(CodebookNotFittedError, match="fit_codebook"):
            codec.decode(torch.zeros(1, 1, 4).long())
        vectors = codec.latent_vectors(audio)
        with pytest.raises(CodebookNotFittedError, match="force_not_quantize=True"):
            codec.decode(vectors.mT)
        assert codec.decode(vectors.mT, force_not_quantize=True).audio_values.shape == audio.shape
        assert codec.train()(audio).audio_values.shape == audio.shape


class TestBadInput:
    @pytest.mark.parametrize(
        ("audio", "error", "message"),
        [
            (torch.zeros(2, 960), ValueError, r"mono, \[B, 1, T\], got shape \(2, 960\); .*reshape\(B, 1, T\)"),
            (torch.zeros(960), ValueError, r"got shape \(960,\); add dimensions"),
            (torch.zeros(2, 2, 960), ValueError, r"got shape \(2, 2, 960\); average the channels"),
            (torch.zeros(1, 1, 960).short(), TypeError, r"\[-1, 1\], got torch\.int16; use the feature extractor"),
            (torch.full((1, 1, 960), torch.nan), ValueError, r"960 of 960 audio samples are NaN or infinite; audio"),
            (torch.cat([torch.zeros(1, 1, 959), torch.full((1, 1, 1), torch.inf)], -1), ValueError, "1 of 960 audio"),
            (torch.zeros(1, 1, 0), ValueError, r"at least 96 samples.*got shape \(1, 1, 0\); append zeros"),
            (torch.zeros(0, 1, 960), ValueError, r"a batch of at least one sample, got shape \(0, 1, 960\)"),
            (torch.zeros(1, 1, 1), ValueError, r"at least 96 samples.*got shape \(1, 1, 1\); append zeros"),
            (torch.zeros(1, 1, 95), ValueError, r"at least 96 samples.*got shape \(1, 1, 95\); append zeros"),
        ],
    )
    def test_bad_audio_is_refused(self, audio, error, message):
        codec = tiny_codec()
        for ask in (codec.encode, codec, codec.latent_vectors):
            with pytest.raises(error, match=message):
                ask(audio)

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (mask_of([960, 500]).flip(-1), "ones followed by zeros; pad at the end"),
            (mask_of([960, 500]).flip(0)[:, :900], r"padding_mask must be \[2, 960\].*got \(2, 900\)"),
            (torch.ones(3, 960), r"padding_mask must be \[2, 960\].*got \(3, 960\)"),
            (torch.ones(960), r"padding_mask must be \[2, 960\].*got \(960,\)"),
            (torch.ones(2, 2, 960), r"padding_mask must be \[2, 960\].*got \(2, 2, 960\)"),
            (mask_of([960, 95]), "at least 96 audio samples.*got 95; leave it out, or count some of the padding"),
            (mask_of([960, 0]), "at least 96 audio samples.*got 0; leave it out"),
            (torch.ones(2, 960).scatter(1, torch.tensor([[500], [959]]), 0), "ones followed by zeros"),
        ],
    )
    def test_bad_masks_are_refused(self, mask, message):
        codec = tiny_codec()
        for ask in (codec.encode, codec, codec.latent_vectors):
            with pytest.raises(ValueError, match=message):
                ask(noise(2, 960), mask)

    @pytest.mark.parametrize(
        ("codes", "error", "message"),
        [
            (torch.tensor([[[0, 16]]]), ValueError, r"codes must lie in 0\.\.15, got 0\.\.16; were they made with"),
            (torch.tensor([[[-1, 3]]]), ValueError, r"codes must lie in 0\.\.15, got -1\.\.3"),
            (torch.zeros(1, 5).long(), ValueError, r"codes \[B, 1, N\] of an integer dtype.*int64 of shape \(1, 5\)"),
            (torch.zeros(1, 2, 5).long(), ValueError, r"got torch\.int64 of shape \(1, 2, 5\)"),
            (torch.zeros(1, 1, 0).long(), ValueError, r"N at least 1; got torch\.int64 of shape \(1, 1, 0\)"),
            (torch.zeros(1, 1, 5), ValueError, r"latents \[B, 3, N\].*got torch\.float32 of shape \(1, 1, 5\)"),
            (torch.zeros(1, 5, 3), ValueError, r"latents \[B, 3, N\].*got torch\.float32 of shape \(1, 5, 3\)"),
            (torch.zeros(1, 1, 5).bool(), TypeError, r"codes must be integers, got torch\.bool"),
            (torch.full((1, 3, 5), torch.nan), ValueError, "15 of 15 latent values are NaN or infinite"),
            (torch.full((1, 3, 5), torch.inf), ValueError, "15 of 15 latent values are NaN or infinite"),
        ],
    )
    def test_bad_codes_and_latents_are_refused(self, codes, error, message):
        codec = tiny_codec()
        with pytest.raises(error, match=message):
            codec.decode(codes)
        with pytest.raises(error, match=message):
            codec.decode(codes, force_not_quantize=True)

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (torch.ones(1, 5 * HOP + 1), r"481 samples long, 5 codes are of 385\.\.480; give the mask that the codes"),
            (torch.ones(1, 4 * HOP), r"384 samples long, 5 codes are of 385\.\.480"),
            (torch.ones(2, 5 * HOP), r"padding_mask must be \[1, T\].*got \(2, 480\)"),
            (torch.ones(5 * HOP), r"padding_mask must be \[1, T\].*got \(480,\)"),
            (mask_of([5 * HOP, 300]).flip(-1)[1:], "ones followed by zeros"),
        ],
    )
    def test_masks_that_do_not_belong_to_the_codes_are_refused(self, mask, message):
        codec = tiny_codec()
        for given in (torch.zeros(1, 1, 5).long(), torch.zeros(1, 3, 5)):
            with pytest.raises(ValueError, match=message):
                codec.decode(given, mask)
