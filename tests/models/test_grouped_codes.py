"""Tokens that have several codes each."""

import torch

from tiny import GROUPED, HOP, noise, noise_images, tiny_codec, tiny_vae
from vpvae_hf import StreamingDecoder, StreamingEncoder


def test_grouped_codes_may_be_flat():
    vae = tiny_vae(GROUPED)
    codes = vae.tokenize(noise_images(2, 16, 16))
    assert torch.equal(vae.decode(codes.flatten(), shape=(2, 4, 4, 2)).sample, vae.detokenize(codes))


def test_grouped_codes_stream():
    codec, audio = tiny_codec(GROUPED, causal=True), noise(2, 20 * HOP)
    with torch.no_grad():
        whole = codec.encode(audio).audio_codes
        sound = codec.decode(whole).audio_values
    assert codec.config.num_codebooks == 2
    encoder, decoder = StreamingEncoder(codec), StreamingDecoder(codec)
    parts = [encoder.encode(chunk) for chunk in audio.split(250, dim=-1)]
    assert torch.equal(torch.cat([*parts, encoder.finish()], dim=-1), whole)
    streamed = torch.cat([decoder.decode(chunk) for chunk in whole.split(3, dim=-1)], dim=-1)
    torch.testing.assert_close(streamed, sound, atol=1e-5, rtol=0)
