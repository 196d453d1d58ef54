"""`vpvae encode-audio` and `vpvae decode-audio`: a person's own audio files to files of codes, and back."""

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vpvae_hf import VPCodecModel
from vpvae_hf.data import code_dtype, read_audio
from vpvae_hf.files import write_atomically
from vpvae_hf.modalities import load_tokenizer
from vpvae_hf.progress import progress_bar

# What the header of a file of codes says it is.
_FORMAT = "vpvae_hf audio codes"
_WRITTEN = ("WAV", "FLAC", "OGG")


def encode(options: argparse.Namespace) -> None:
    """Encode, write the codes, and print their count, bitrate and speed."""
    output = _output(options, options.file.with_suffix(".safetensors"))
    codec = _load_codec(options.tokenizer, options.revision, options.codebook_size)
    rate = codec.config.sampling_rate
    waveform = read_audio(options.file, sampling_rate=rate, resample=options.resample, downmix=options.downmix)
    started = time.monotonic()
    audio = torch.from_numpy(waveform)[None, None].to(codec.device)
    with _progress(codec, len(waveform), "Encoding", refine_steps=options.refine_steps):
        codes = codec.codes_first(codec.tokenize(audio, refine_steps=options.refine_steps)).cpu()
    elapsed = time.monotonic() - started
    header = {
        "format": _FORMAT,
        "tokenizer": str(options.tokenizer),
        "revision": options.revision or "",
        "fingerprint": json.dumps(codec.fingerprint()),
        "sampling_rate": str(rate),
        "num_samples": str(len(waveform)),
        "codebook_size": str(codec.config.codebook_size),
        "refine_steps": str(options.refine_steps),
    }
    dtype = getattr(torch, code_dtype(codec.config.codebook_size))
    with write_atomically(output) as aside:
        save_file({"audio_codes": codes.to(dtype)}, aside, metadata=header)
    duration, frame_rate, size = len(waveform) / rate, codec.config.frame_rate, codec.config.codebook_size
    kilobits = frame_rate * codec.config.num_codebooks * math.log2(size) / 1000
    print(
        f"{duration:.2f} s of audio in {codes.shape[1] * codes.shape[2]} codes of {size}: {frame_rate:.2f} codes per "
        f"second, {kilobits:.2f} kbit/s"
    )
    print(f"encoded in {elapsed:.2f} s, {duration / elapsed:.1f} times as fast as it plays")
    print(f"codes: {output}; vpvae decode-audio {output}")


def decode(options: argparse.Namespace) -> None:
    """Decode, write the audio, and print the speed."""
    import soundfile

    output = _output(options, options.file.with_suffix(".decoded.wav"))
    kind = output.suffix.removeprefix(".").upper()
    if kind not in _WRITTEN:
        raise ValueError(f"{output} must end in .wav, .flac or .ogg; name such a file with --output")
    codes, header = _read_codes(options.file)
    name = options.tokenizer or header["tokenizer"]
    recorded = header["revision"] if options.tokenizer is None else ""
    codec = _load_codec(name, options.revision or recorded or None)
    if (size := int(header["codebook_size"])) in codec.codebook_sizes:
        codec.select_codebook(size)
    try:
        codec.check_fingerprint(json.loads(header["fingerprint"]), f"{options.file} was written")
    except ValueError as error:
        raise ValueError(f"{name}: {error}; {options.file} was made with {header['tokenizer']}") from None
    length, rate = int(header["num_samples"]), codec.config.sampling_rate
    started = time.monotonic()
    with _progress(codec, length, "Decoding"), torch.no_grad():
        audio = codec.decode(codes.to(codec.device), torch.ones(1, length)).audio_values
    elapsed = time.monotonic() - started
    waveform = audio[0, 0].float().cpu().clamp(-1, 1).numpy()
    with write_atomically(output) as aside, soundfile.SoundFile(aside, "w", rate, 1, format=kind) as opened:
        # One second at a time: libsndfile's OGG encoder ends the process if it gets minutes at once.
        for start in range(0, len(waveform), rate):
            opened.write(waveform[start : start + rate])
    print(f"{length / rate:.2f} s of audio decoded in {elapsed:.2f} s, {length / rate / elapsed:.1f} times real time")
    print(f"audio: {output}")


def _load_codec(name: str, revision: str | None, codebook_size: int | None = None) -> VPCodecModel:
    codec = load_tokenizer(name, revision, codebook_size=codebook_size)
    if not isinstance(codec, VPCodecModel):
        raise ValueError(f"{name} holds {type(codec).__name__}, which is for images; name an audio tokenizer")
    return codec


def _output(options: argparse.Namespace, default: Path) -> Path:
    output = options.output or default
    if output.is_dir():
        raise IsADirectoryError(f"{output} is a folder; name a file with --output")
    if output.exists() and not options.overwrite:
        raise FileExistsError(f"{output} exists; use --overwrite, or another file with --output")
    return output


def _read_codes(file: Path) -> tuple[Tensor, dict[str, str]]:
    """Codes [1, G, N] and the header."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; name a file that `vpvae encode-audio` wrote")
    try:
        with safe_open(file, "pt") as opened:
            header = opened.metadata() or {}
            if header.get("format") != _FORMAT:
                raise ValueError(f"{file} holds no audio codes; name a file that `vpvae encode-audio` wrote")
            return opened.get_tensor("audio_codes"), header
    except SafetensorError as error:
        raise ValueError(f"{file} holds no audio codes, or is damaged ({error}); encode the audio again") from error


@contextmanager
def _progress(codec: VPCodecModel, samples: int, title: str, refine_steps: int = 0) -> Iterator[None]:
    """A bar over the parts that a long recording is processed in, each several times if codes are refined."""
    parts = math.ceil(math.ceil(samples / codec.config.hop_length) / codec.config.chunk_frames)
    passes = 1 + (refine_steps + 2 if refine_steps else 0)
    with progress_bar(total=parts * passes, desc=title, unit="part", shown=parts * passes > 1) as bar:

        def count(*_) -> None:  # if a hook returned something, that would replace the module's output
            bar.update()

        hooks = [module.register_forward_hook(count) for module in (codec.encoder, codec.decoder)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
