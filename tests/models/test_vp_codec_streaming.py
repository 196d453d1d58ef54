"""Audio and codes that come in chunks give what the whole would give."""

import pytest
import torch

from tiny import FSP, HOP, RATE, VP, noise, tiny_codec
from vpvae_hf import CodebookNotFittedError, StreamingDecoder, StreamingEncoder

FRAMES = 40  # many times the attention window of 8


@pytest.fixture(params=[VP, FSP], ids=["vp", "fsp"], scope="module")
def codec(request):
    return tiny_codec(request.param, causal=True, chunk_length_s=100.0)


def encoded(codec, audio, chunk):
    stream = StreamingEncoder(codec)
    parts = [stream.encode(part) for part in audio.split(chunk, dim=-1)]
    return torch.cat([*parts, stream.finish()], dim=-1)


@pytest.mark.parametrize("chunk", [31, HOP, 5 * HOP + 1, 1000 * HOP])
@pytest.mark.parametrize("length", [FRAMES * HOP, FRAMES * HOP + 17])
def test_codes_of_chunks_are_those_of_the_whole(codec, chunk, length):
    audio = noise(2, length)
    assert torch.equal(encoded(codec, audio, chunk), codec.encode(audio).audio_codes)


def test_a_code_comes_with_the_last_sample_of_its_hop(codec):
    stream = StreamingEncoder(codec)
    audio = noise(1, 2 * HOP)
    counts = [stream.encode(audio[..., i : i + 1]).shape[-1] for i in range(2 * HOP)]
    assert [i for i, count in enumerate(counts) if count] == [HOP - 1, 2 * HOP - 1]
    assert stream.finish().shape == (1, 1, 0)


@pytest.mark.parametrize("chunk", [1, 7, FRAMES])
@torch.no_grad()
def test_audio_of_chunks_is_that_of_the_whole(codec, chunk):
    codes = torch.randint(codec.config.codebook_size, (2, 1, FRAMES), generator=torch.Generator().manual_seed(0))
    stream = StreamingDecoder(codec)
    audio = torch.cat([stream.decode(part) for part in codes.split(chunk, dim=-1)], dim=-1)
    torch.testing.assert_close(audio, codec.decode(codes).audio_values, atol=1e-5, rtol=0)


@torch.no_grad()
def test_late_in_a_stream_codes_and_audio_are_as_exact_as_early():
    """Ten minutes at the default frame rate, as a stream, in parts and as an excerpt."""
    settings = {"sampling_rate": 2 * RATE // HOP, "chunk_length_s": 6.0, "num_hidden_layers": 1}
    codec = tiny_codec(causal=True, downsampling_ratios=[2], **settings)
    audio = noise(1, 200_000)
    codes = codec.encode(audio).audio_codes
    assert torch.equal(encoded(codec, audio, 2000), codes)
    stream = StreamingDecoder(codec)
    made = [stream.decode(part) for part in codes.split(1000, dim=-1)]
    excerpt = codec.decode(codes[..., 98_900:]).audio_values[..., 200:]
    torch.testing.assert_close(made[-1], excerpt, atol=1e-5, rtol=0)


def test_what_a_stream_holds_does_not_grow(codec):
    audio, codes = noise(1, FRAMES * HOP), torch.zeros(1, 1, FRAMES, dtype=torch.long)
    encoder, decoder = StreamingEncoder(codec), StreamingDecoder(codec)
    for stream, take, parts in (
        (encoder, encoder.encode, audio.split(HOP, dim=-1)),
        (decoder, decoder.decode, codes.split(1, dim=-1)),
    ):
        held = []
        for part in parts:
            take(part)
            assert all(layer.keys.shape[2] < codec.config.sliding_window for layer in stream._attended.layers)
            attended = sum(layer.keys.untyped_storage().nbytes() for layer in stream._attended.layers)
            held.append(attended + sum(past.untyped_storage().nbytes() for past in stream._past.values()))
        assert held[-1] == held[codec.config.sliding_window + 1]
        assert not any(past.requires_grad for past in stream._past.values())


def test_a_stream_does_not_hold_on_to_a_long_chunk(codec):
    streams = StreamingEncoder(codec), StreamingEncoder(codec)
    streams[0].encode(noise(1, FRAMES * HOP + 5))
    for part in noise(1, FRAMES * HOP + 5).split(HOP, dim=-1):
        streams[1].encode(part)
    once, bit_by_bit = (
        sum(past.untyped_storage().nbytes() for past in (*stream._past.values(), stream._rest)) for stream in streams
    )
    assert once == bit_by_bit


def test_streams_do_not_disturb_each_other(codec):
    one, other = noise(1, 20 * HOP, seed=2), noise(1, 20 * HOP, seed=3)
    streams = StreamingEncoder(codec), StreamingEncoder(codec)
    found = [[], []]
    for parts in zip(one.split(HOP, dim=-1), other.split(HOP, dim=-1), strict=True):
        for stream, part, codes in zip(streams, parts, found, strict=True):
            codes.append(stream.encode(part))
    assert torch.equal(torch.cat(found[0], dim=-1), codec.encode(one).audio_codes)
    assert torch.equal(torch.cat(found[1], dim=-1), codec.encode(other).audio_codes)


def test_empty_chunks(codec):
    encoder, decoder = StreamingEncoder(codec), StreamingDecoder(codec)
    assert encoder.finish().shape == (1, 1, 0)
    assert encoder.encode(torch.zeros(2, 1, 0)).shape == (2, 1, 0)
    assert decoder.decode(torch.zeros(2, 1, 0, dtype=torch.long)).shape == (2, 1, 0)


@pytest.mark.parametrize("kind", [StreamingEncoder, StreamingDecoder])
def test_only_a_causal_codec_in_eval_mode_streams(kind):
    with pytest.raises(ValueError, match="not causal: each of its codes depends on later audio; train one with causal"):
        kind(tiny_codec())
    with pytest.raises(ValueError, match=r"in train mode, in which it has no codes; call codec.eval\(\)"):
        kind(tiny_codec(causal=True).train())


def test_an_unfitted_codec_has_no_codes_to_stream():
    codec = tiny_codec(fitted=False, causal=True)
    with pytest.raises(CodebookNotFittedError):
        StreamingEncoder(codec).encode(noise(1, HOP))
    with pytest.raises(CodebookNotFittedError):
        StreamingDecoder(codec).decode(torch.zeros(1, 1, 1, dtype=torch.long))


def test_a_refused_chunk_leaves_the_stream_as_it_was(codec):
    encoder, decoder = StreamingEncoder(codec), StreamingDecoder(codec)
    audio, codes = noise(2, 6 * HOP), codec.encode(noise(2, 6 * HOP)).audio_codes
    for stream, good, bad, message in (
        (encoder.encode, audio, torch.full((1, 1, HOP), torch.nan), "NaN or infinite"),
        (encoder.encode, audio, noise(2, HOP)[:, 0], r"mono audio must be \[B, 1, T\]"),
        (encoder.encode, audio, noise(1, HOP), "keeps its batch size, it was 2 and is 1"),
        (decoder.decode, codes, torch.full((1, 1, 1), codec.config.codebook_size), "codes must lie in"),
        (decoder.decode, codes, torch.zeros(2, 3, dtype=torch.long), r"codes must be \[B, 1, N\]"),
        (decoder.decode, codes, torch.zeros(1, 1, 1, dtype=torch.long), "keeps its batch size, it was 2 and is 1"),
    ):
        if "batch" in message:
            made = stream(good)
        with pytest.raises(ValueError, match=message):
            stream(bad)
        if "batch" in message:
            assert torch.equal(made, codes) if good is audio else made.shape == (2, 1, 6 * HOP)
