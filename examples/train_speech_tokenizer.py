# /// script
# requires-python = ">=3.11"
# dependencies = ["vpvae_hf[audio,train]"]
# ///
"""Train a speech tokenizer in a loop of your own: synthetic voices, or a folder of recordings.

python examples/train_speech_tokenizer.py
python examples/train_speech_tokenizer.py --recordings FOLDER --steps 20000
python examples/train_speech_tokenizer.py --causal --output runs/examples/causal_speech_tokenizer  # can stream
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from tqdm.auto import tqdm

from vpvae_hf import VPCodecConfig, VPCodecModel, fit_codebook
from vpvae_hf.data import open_audio, read_audio, synthetic_voice
from vpvae_hf.losses import multi_resolution_stft_loss
from vpvae_hf.metrics import code_usage, mel_distance

RATE, SEGMENT, BATCH, WARMUP, LEARNING_RATE = 16_000, 9600, 8, 50, 2e-3
VOICES, VOICE_SECONDS, PITCHES = 32, 3.0, (90, 260)  # Hz
MOST_CLIPS = 500  # they are held in memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recordings", help="a folder of audio files, or a hub id; default: synthetic voices")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--codebook-size", type=int, default=1024)
    parser.add_argument("--causal", action="store_true", help="no code depends on later audio; see stream_speech.py")
    parser.add_argument("--output", type=Path, default=Path("runs/examples/speech_tokenizer"))
    options = parser.parse_args()
    torch.manual_seed(0)
    clips = voices() if options.recordings is None else recordings(options.recordings)
    held_out, training = clips[::8], [clip for number, clip in enumerate(clips) if number % 8]
    if not training:
        raise SystemExit(f"{options.recordings} has {len(clips)} clip and one is held out; give at least 2")
    codec = build(options.codebook_size, options.causal)
    codec.to("cuda" if torch.cuda.is_available() else "cpu")
    train(codec, segments(training, seed=0), options.steps)
    print(fit_codebook(codec, segments(training, seed=1)))
    codec.eval()
    measure(codec, held_out)
    codec.save_pretrained(options.output)
    print(f'Saved. Use it: VPCodecModel.from_pretrained("{options.output}")')


def voices() -> list[torch.Tensor]:
    """Clips [T] that differ in pitch and in how their formants move: enough to try things, not to learn speech."""
    low, high = PITCHES
    pitches = [low * (high / low) ** (number / VOICES) for number in range(VOICES)]
    numbered = tqdm(enumerate(pitches), total=VOICES, desc="Synthesizing", unit="voice")
    return [synthetic_voice(VOICE_SECONDS, pitch=pitch, seed=number) for number, pitch in numbered]


def recordings(name: str) -> list[torch.Tensor]:
    source, clips = open_audio(name, split="train"), []
    for row in tqdm(source.rows, desc="Reading", unit="clip"):
        file = source.file(row[source.column])
        clips.append(torch.from_numpy(read_audio(file, sampling_rate=RATE, resample=True, downmix=True)))
        if len(clips) == MOST_CLIPS:
            break
    return clips


def segments(clips: list[torch.Tensor], seed: int):
    """Endless batches [B, 1, S]; a clip is chosen in proportion to its length, or short ones would be overrepresented.

    Shorter clips are followed by silence.
    """
    rng = np.random.default_rng(seed)
    lengths = np.array([len(clip) for clip in clips], dtype=float)
    while True:
        batch = torch.zeros(BATCH, 1, SEGMENT)
        for item, number in zip(batch, rng.choice(len(clips), BATCH, p=lengths / lengths.sum()), strict=True):
            start = rng.integers(max(0, len(clips[number]) - SEGMENT) + 1)
            part = clips[number][start : start + SEGMENT]
            item[0, : len(part)] = part
        yield batch


def build(codebook_size: int, causal: bool) -> VPCodecModel:
    """0.9 million weights, 166.67 codes per second."""
    config = VPCodecConfig(
        spectral=True,  # Fourier transforms in place of convolutions on samples: all layers work at the rate of codes
        downsampling_ratios=[96],
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        layer_scale_initial_scale=0.1,  # so short a run has no time for layers that start by doing almost nothing
        causal=causal,
        quantizer={
            "kind": "vp",
            "codebook_size": codebook_size,
            "latent_dim": 4,
            "queue_share": 0.1,
            "mean_weight": 1.0,  # ten times the default, as the reconstruction loss is
            "variance_weight": 0.7,
            "commitment_weight": 0.0,  # it gained nothing on speech
        },
    )
    return VPCodecModel(config)


def train(codec: VPCodecModel, batches, steps: int) -> None:
    optimizer = torch.optim.AdamW(codec.parameters(), lr=LEARNING_RATE)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, steps)
    codec.train()
    with tqdm(total=steps, desc="Training", unit="step") as bar:
        for step, audio in zip(range(steps), batches, strict=False):
            codec.quantize.set_progress(step / steps)
            audio = audio.to(codec.device)
            output = codec(audio)
            # A loss of waveforms alone neglects quiet high frequencies, one of spectra alone ignores the phase.
            loss = 10 * (output.audio_values - audio).abs().mean() + output.loss
            loss = loss + multi_resolution_stft_loss(output.audio_values, audio)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update()
            if step % 20 == 0:
                bar.set_postfix_str(f"loss {loss.detach():.2f}")


@torch.no_grad()
def measure(codec: VPCodecModel, clips: list[torch.Tensor]) -> None:
    distances, silences, codes = [], [], []
    for clip in clips:
        audio = clip[None, None].to(codec.device)
        codes.append(codec.tokenize(audio).flatten())
        decoded = codec.detokenize(codes[-1][None])[..., : len(clip)]
        distances.append(mel_distance(decoded, audio, RATE))
        silences.append(mel_distance(torch.zeros_like(audio), audio, RATE))
    distance, silence = (float(torch.cat(each).mean()) for each in (distances, silences))
    print(f"Mel distance of {len(clips)} held-out clips, from codes: {distance:.3f} (silence would have {silence:.3f})")
    print(f"Code usage, exp(entropy) / K: {code_usage(torch.cat(codes), codec.config.codebook_size):.3f}")


if __name__ == "__main__":
    main()
