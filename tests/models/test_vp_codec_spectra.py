"""The codec on Fourier transforms: what they are at the start, and that parts, batches and streams are the whole."""

import peft
import pytest
import torch

from tiny import CLOSE, HOP, LENGTHS, tiny_codec
from vpvae_hf import StreamingDecoder, StreamingEncoder, VPCodecModel
from vpvae_hf.models.vp_codec_layers import CausalPadding, SymmetricPadding, context_frames

ONE_HOP = {"spectral": True, "downsampling_ratios": [HOP]}


def made(**settings):
    return tiny_codec(**ONE_HOP, **settings)


def noise(*shape):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_transforms_start_as_inverses_of_each_other(no_gradients):
    codec, audio = made(), noise(2, 1, 20 * HOP)
    padding = SymmetricPadding(20)
    spectra = padding.convolve(codec.encoder.analysis, audio, codec.encoder.reach, HOP) / HOP
    again = padding.upsample(codec.decoder.synthesis, spectra, HOP, 4)
    inner = slice(2 * HOP, -2 * HOP)  # where all windows are
    torch.testing.assert_close(again[..., inner], audio[..., inner], atol=1e-5, rtol=0)


def test_the_magnitude_of_a_sine_is_its_amplitude(no_gradients):
    codec = made()
    sine = 0.5 * torch.sin(2 * torch.pi * 40 / (4 * HOP) * torch.arange(20 * HOP))[None, None]
    real, imaginary = SymmetricPadding(20).convolve(codec.encoder.analysis, sine, codec.encoder.reach, HOP).chunk(2, 1)
    magnitudes = (real**2 + imaginary**2).sqrt()[0, :, 10] / HOP
    assert magnitudes.argmax() == 40
    assert magnitudes.max() == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_parts_and_batches_equal_the_whole(causal, no_gradients):
    codec, whole = made(causal=causal, chunk_length_s=0.3), made(causal=causal, chunk_length_s=1e6)
    audio, mask = noise(len(LENGTHS), 1, LENGTHS[0]), torch.zeros(len(LENGTHS), LENGTHS[0], dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        audio[row, :, length:] = 0
        mask[row, :length] = 1
    encoded = codec.encode(audio, mask)
    decoded = codec.decode(encoded.audio_codes, mask).audio_values
    for row, length in enumerate(LENGTHS):
        alone = whole.encode(audio[row : row + 1, :, :length])
        frames = alone.latents.shape[-1]
        torch.testing.assert_close(encoded.latents[row, :, :frames], alone.latents[0], **CLOSE)
        made_alone = whole.decode(alone.audio_codes).audio_values[0, :, :length]
        torch.testing.assert_close(decoded[row, :, :length], made_alone, **CLOSE)


def test_a_stream_is_the_whole(no_gradients):
    codec, audio = made(causal=True), noise(1, 1, 90 * HOP)
    encoder, decoder = StreamingEncoder(codec), StreamingDecoder(codec)
    codes = [encoder.encode(chunk) for chunk in audio.split(1000, dim=-1)]
    expected = codec.encode(audio).audio_codes
    assert torch.equal(torch.cat([*codes, encoder.finish()], dim=-1), expected)
    played = torch.cat([decoder.decode(chunk) for chunk in expected.split(7, dim=-1)], dim=-1)
    torch.testing.assert_close(played, codec.decode(expected).audio_values, **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
def test_nothing_beyond_the_context_has_a_part(causal, no_gradients):
    codec = made(causal=causal, chunk_length_s=1e6, num_hidden_layers=0)
    frames, context = 30, context_frames(codec.config)
    audio, latents = noise(1, 1, frames * HOP), noise(1, 3, frames)
    other_audio, other_latents = audio.clone(), latents.clone()
    other_audio[..., 15 * HOP : 16 * HOP] *= -1
    other_latents[..., 15] *= -1
    for was, now in (
        (codec.encode(audio).latents.abs().amax((0, 1)), codec.encode(other_audio).latents.abs().amax((0, 1))),
        (codec.decode_vectors(latents.mT).view(frames, HOP), codec.decode_vectors(other_latents.mT).view(frames, HOP)),
    ):
        reached = (was - now).reshape(frames, -1).abs().amax(1).nonzero()[:, 0] - 15
        assert reached.max() <= context == 3
        assert -reached.min() <= (0 if causal else context)


def test_saved_and_loaded_after_training(tmp_path):
    codec, audio = made().train(), noise(2, 1, 20 * HOP)
    codec(audio).audio_values.square().mean().backward()
    assert all(weight.grad.any() for name, weight in codec.encoder.named_parameters())
    with torch.no_grad():
        for weight in codec.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    codec.eval().save_pretrained(tmp_path)
    loaded = VPCodecModel.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(audio).audio_values, codec(audio).audio_values)
    assert loaded(audio).audio_values.abs().max() <= 1


def test_causal_context_is_carried_on(no_gradients):
    codec, past = made(causal=True), {}
    audio = noise(1, 1, 10 * HOP)
    parts = [codec.encoder(part, CausalPadding(past)) for part in audio.split(2 * HOP, dim=-1)]
    torch.testing.assert_close(torch.cat(parts, dim=-1), codec.encoder(audio, CausalPadding()), **CLOSE)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of peft
def test_an_adapter_adapts_its_convolutions(no_gradients):
    codec, audio = made(), noise(1, 1, 10 * HOP)
    expected = codec.encode(audio).latents
    adapted = peft.get_peft_model(codec, peft.LoraConfig(r=2, target_modules=["analysis", "encoder.conv"]))
    torch.testing.assert_close(adapted.encode(audio).latents, expected, **CLOSE)
    adapted.base_model.encoder.analysis.lora_B.default.weight.fill_(0.1)
    assert not torch.allclose(adapted.encode(audio).latents, expected, **CLOSE)
