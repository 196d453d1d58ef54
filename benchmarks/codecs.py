"""Measure familiar codecs at the bit rates of tokenizers, by the metrics of `vpvae evaluate`.

    python benchmarks/codecs.py images --dataset NAME --split test --bytes 256 320 384 448
    python benchmarks/codecs.py speech --dataset NAME --split test --bitrates 1600 2400

Images: WebP at its best quality within a number of bytes per file. If a picture's smallest file is larger, that file
is used, and the share of such pictures is given. Speech: Codec 2 (the programs c2enc and c2dec), which works at 8 kHz:
clips are resampled to that rate and back, and a delay of 20 ms is removed, which gives the highest STOI. Results are
added to benchmarks/results/codecs.json.
"""

import argparse
import subprocess
from pathlib import Path

import numpy as np
import torch

from vpvae_hf.data import load_images, open_audio, read_audio
from vpvae_hf.files import read_json, write_json
from vpvae_hf.metrics import audio_quality, image_quality
from vpvae_hf.metrics.codecs import WebP
from vpvae_hf.pixels import to_pixel_values
from vpvae_hf.resampling import resampled

RATE, CODEC2_RATE = 16_000, 8_000
CODEC2_DELAY = 320  # samples at RATE
RESULTS = Path(__file__).parent / "results" / "codecs.json"


def webp(image: torch.Tensor, most: int) -> tuple[torch.Tensor, int]:
    """A picture [3, H, W] in [-1, 1] after WebP at its best quality within `most` bytes, and the bytes."""
    codec, low, high = WebP(), 0, 100  # sizes grow with quality
    best = codec.encode(image, 0)
    while low < high:
        middle = (low + high + 1) // 2
        file = codec.encode(image, middle)
        if len(file) <= most:
            low, best = middle, file
        else:
            high = middle - 1
    return codec.decode(best, image), len(best)


def codec2(waveform: np.ndarray, bitrate: int) -> np.ndarray:
    """A clip [T] at 16 kHz after Codec 2."""
    narrow = np.asarray(resampled(waveform, RATE, CODEC2_RATE))
    raw = (np.clip(narrow, -1, 1) * 32767).astype("<i2").tobytes()
    bits = subprocess.run(["c2enc", str(bitrate), "-", "-"], input=raw, capture_output=True, check=True).stdout
    made = subprocess.run(["c2dec", str(bitrate), "-", "-"], input=bits, capture_output=True, check=True).stdout
    made = np.asarray(resampled(np.frombuffer(made, "<i2").astype(np.float32) / 32768, CODEC2_RATE, RATE))
    made = made[CODEC2_DELAY:]
    return np.pad(made, (0, max(0, len(waveform) - len(made))))[: len(waveform)]  # it drops an incomplete last frame


def images(options: argparse.Namespace) -> None:
    originals = load_images(options.dataset, split=options.split, limit=options.limit, shortest_side=options.size)
    originals = [to_pixel_values(image[None])[0] for image in originals]
    for most in options.bytes:
        pairs = [(*webp(image, most), image) for image in originals]
        quality = [image_quality(made[None], image[None]) for made, _, image in pairs]
        sizes = np.array([size for _, size, _ in pairs])
        over = {"mean_bytes": float(sizes.mean()), "share_over": float((sizes > most).mean())}
        _add(options, f"WebP, {most} bytes", quality, over)


def speech(options: argparse.Namespace) -> None:
    source = open_audio(options.dataset, split=options.split)
    rows = [source.file(row[source.column]) for _, row in zip(range(options.limit), source.rows, strict=False)]
    clips = [read_audio(file, sampling_rate=RATE, resample=True, downmix=True) for file in rows]
    for bitrate in options.bitrates:
        made = [codec2(clip, bitrate) for clip in clips]
        quality = [audio_quality(*map(_clip, pair), RATE) for pair in zip(made, clips, strict=True)]
        _add(options, f"Codec 2, {bitrate} bit/s", quality, {})


def _clip(waveform: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(waveform.astype(np.float32))[None, None]


def _add(options: argparse.Namespace, codec: str, quality: list[dict], more: dict[str, float]) -> None:
    means = {name: float(torch.cat([each[name] for each in quality]).nanmean()) for name in quality[0]} | more
    print(codec, len(quality), means, flush=True)
    results = read_json(RESULTS) if RESULTS.exists() else {}
    place = f"{Path(options.dataset).name}, {options.split}"
    results.setdefault(place, {})[codec] = {"items": len(quality)} | means
    write_json(RESULTS, results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    for run, default in ((images, {"--bytes": [448]}), (speech, {"--bitrates": [1600]})):
        kind = kinds.add_parser(run.__name__)
        kind.set_defaults(run=run)
        kind.add_argument("--dataset", required=True)
        kind.add_argument("--split", default="test")
        kind.add_argument("--limit", type=int, default=100_000)
        kind.add_argument("--size", type=int, default=128, help="shortest side of images")
        for name, values in default.items():
            kind.add_argument(name, type=int, nargs="+", default=values)
    chosen = parser.parse_args()
    chosen.run(chosen)
