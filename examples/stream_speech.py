# /// script
# requires-python = ">=3.11"
# dependencies = ["vpvae_hf[audio]"]
# ///
"""Encode and decode speech as it arrives, chunk by chunk, with a causal codec.

python examples/train_speech_tokenizer.py --causal --output runs/examples/causal_speech_tokenizer
python examples/stream_speech.py --codec runs/examples/causal_speech_tokenizer --recording speech.flac
"""

import argparse
import time
from pathlib import Path

import soundfile
import torch
from tqdm.auto import tqdm

from vpvae_hf import StreamingDecoder, StreamingEncoder, VPCodecConfig, VPCodecModel
from vpvae_hf.data import read_audio, synthetic_voice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--codec", help="folder or hub id of a causal codec; default: an untrained one, to time it")
    parser.add_argument("--recording", help="an audio file; default: three seconds of a synthetic voice")
    parser.add_argument("--chunk-ms", type=float, default=48.0)
    parser.add_argument("--output", type=Path, default=Path("runs/examples/streamed.flac"))
    options = parser.parse_args()
    codec = load(options.codec)
    rate, hop = codec.config.sampling_rate, codec.config.hop_length
    if options.recording is None:
        audio = synthetic_voice(3.0, sampling_rate=rate)
    else:
        audio = torch.from_numpy(read_audio(options.recording, sampling_rate=rate, resample=True, downmix=True))
    chunk = max(1, round(options.chunk_ms * rate / 1000))

    # Sender and receiver share only codes. Each keeps the last inputs of its layers, so memory does not grow.
    encoder, decoder = StreamingEncoder(codec), StreamingDecoder(codec)
    codes, heard, seconds = [], [], []
    for part in tqdm(audio.split(chunk), desc="Streaming", unit="chunk"):
        began = time.perf_counter()
        codes.append(encoder.encode(part[None, None]))  # [1, 1, N]; N may be 0, if no hop is complete
        heard.append(decoder.decode(codes[-1]))
        seconds.append(time.perf_counter() - began)
    codes.append(encoder.finish())  # the last hop, filled up with zeros
    heard.append(decoder.decode(codes[-1]))
    codes, heard = torch.cat(codes, dim=-1), torch.cat(heard, dim=-1)[0, 0, : len(audio)]

    # A stream is rounded differently from the whole, so a latent midway between two codes may get the other one.
    with torch.no_grad():
        same = (codec.encode(audio[None, None]).audio_codes == codes).float().mean()
    times = torch.tensor(seconds[1:] or seconds) * 1000  # the first call sets up what later ones use
    chunk_ms = 1000 * chunk / rate
    print(f"{codes.shape[-1]} codes of {len(audio) / rate:.2f} s, {float(same):.2%} of them as for the whole recording")
    print(f"Encoding and decoding a chunk of {chunk_ms:.0f} ms: median {float(times.median()):.1f} ms")
    print(f"... 95% of them took at most: {float(times.quantile(0.95)):.1f} ms")
    factor = sum(seconds) * rate / len(audio)
    verdict = "below 1, so it keeps up" if factor < 1 else "above 1, so the delay grows; longer chunks cost less"
    print(f"Real-time factor: {factor:.3f} ({verdict})")
    # A sound waits until its chunk and its hop are full, and then for the computation.
    waiting = max(chunk, hop) * 1000 / rate
    print(f"Latency: {waiting + float(times.median()):.0f} ms, of which {waiting:.0f} ms are waiting for the chunk")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(options.output, heard.numpy(), rate)
    print(f"Written: {options.output}")


def load(name: str | None) -> VPCodecModel:
    if name is not None:
        return VPCodecModel.from_pretrained(name).eval()
    print("No --codec: using an untrained one. It is as fast as a trained one, but its sound is not speech.")
    torch.manual_seed(0)
    config = VPCodecConfig(
        causal=True,
        spectral=True,
        downsampling_ratios=[96],
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        quantizer={"kind": "fsp", "codebook_size": 1024},  # a fixed grid, so there are codes without a fit
    )
    return VPCodecModel(config).eval()


if __name__ == "__main__":
    main()
