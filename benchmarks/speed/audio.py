"""Encoding and decoding audio, compared with transformers' codecs of similar size, all with random weights."""

import torch
from measuring import Table
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

from vpvae_hf import StreamingDecoder, StreamingEncoder, VPCodecConfig, VPCodecModel

_RATE = 16000
_FSP = {"kind": "fsp", "codebook_size": 1024}


def compare(sizes: list[int], rounds: int, device: torch.device) -> list[Table]:
    """Codebook sizes make no difference to these, so `sizes` is not used."""
    codecs = _codecs(device)
    tables = [
        _table(direction, seconds, codecs, rounds, device)
        for direction in ("Encoding", "Decoding")
        for seconds in (1, 10)
    ]
    return [*tables, _streaming(rounds, device)]


def _codecs(device: torch.device) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    like = {"encoder_hidden_size": 20, "decoder_hidden_size": 320, "hidden_size": 320, "intermediate_size": 1280}
    codecs = {
        "VPCodecModel, of like size": VPCodecModel(VPCodecConfig(**like, quantizer=_FSP)),
        "VPCodecModel, by default": VPCodecModel(VPCodecConfig(quantizer=_FSP)),
        "EnCodec, 16 kHz": EncodecModel(
            EncodecConfig(sampling_rate=_RATE, upsampling_ratios=[6, 4, 2, 2], target_bandwidths=[1.7], normalize=False)
        ),
        "DAC, 16 kHz, of like size": DacModel(
            DacConfig(
                sampling_rate=_RATE,
                downsampling_ratios=[2, 4, 4, 4],
                encoder_hidden_size=32,
                decoder_hidden_size=768,
                n_codebooks=1,
            )
        ),
    }
    return {f"{name} ({_millions(codec):.1f} M)": codec.to(device).eval() for name, codec in codecs.items()}


def _millions(codec: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in codec.parameters()) / 1e6


@torch.no_grad()
def _table(
    direction: str, seconds: int, codecs: dict[str, torch.nn.Module], rounds: int, device: torch.device
) -> Table:
    table = Table(
        f"{direction} {seconds} s of audio",
        "One recording of noise at 16 kHz. The real-time factor is the time taken per second of audio; below 1 is "
        "faster than real time. Codes per second: VPCodecModel 166.67 of one codebook, EnCodec 166.67 of one, DAC 125 "
        "of one. Sizes are numbers of parameters.",
    )
    audio = 0.1 * torch.randn(1, 1, seconds * _RATE, generator=torch.Generator().manual_seed(0)).to(device)
    ways = {name: _way(direction, codec, audio) for name, codec in codecs.items()}
    for way in ways.values():
        way()  # the first call sets up
    table.add(None, ways, rounds)
    for row in table.rows:
        row.remark = f"real-time factor {row.seconds / seconds:.3f}"
    return table


def _way(direction: str, codec: torch.nn.Module, audio: torch.Tensor):
    codes = codec.encode(audio).audio_codes
    if direction == "Encoding":
        return lambda: torch.no_grad()(codec.encode)(audio)
    if isinstance(codec, EncodecModel):
        return lambda: torch.no_grad()(codec.decode)(codes, [None])
    return lambda: torch.no_grad()(codec.decode)(audio_codes=codes)


@torch.no_grad()
def _streaming(rounds: int, device: torch.device) -> Table:
    codec = VPCodecModel(VPCodecConfig(causal=True, quantizer=_FSP)).to(device).eval()
    table = Table(
        "Streaming, latency of a chunk",
        "A causal VPCodecModel on 2 s of audio in chunks: the time from the last sample of a chunk to its codes, or "
        "from codes to their audio. The delay of the model itself is one hop, 6 ms.",
    )
    for milliseconds in (6, 48, 480):
        samples = round(milliseconds / 6) * codec.config.hop_length
        audio = 0.1 * torch.randn(1, 1, 2 * _RATE // samples * samples, device=device)
        codes = codec.encode(audio).audio_codes

        def encode(audio=audio, samples=samples) -> None:
            stream = StreamingEncoder(codec)
            for chunk in audio.split(samples, dim=-1):
                stream.encode(chunk)

        def decode(codes=codes, samples=samples) -> None:
            stream = StreamingDecoder(codec)
            for chunk in codes.split(samples // codec.config.hop_length, dim=-1):
                stream.decode(chunk)

        first = len(table.rows)
        table.add(None, {f"encoding {milliseconds} ms": encode, f"decoding {milliseconds} ms": decode}, rounds)
        duration = audio.shape[-1] / _RATE
        for row in table.rows[first:]:
            latency = 1000 * row.seconds * samples / audio.shape[-1]
            row.remark = f"{latency:.2f} ms a chunk, real-time factor {row.seconds / duration:.3f}"
    return table
