"""`vpvae demo --modality audio`: train a tokenizer on sounds with the recipe `small`, save and measure it, and write
the sounds that it reconstructs.
"""

import argparse
import time
from pathlib import Path

import soundfile

from vpvae_hf.data import synthetic_voice
from vpvae_hf.files import claim_output_folder
from vpvae_hf.modalities.audio import AudioTrainingConfig
from vpvae_hf.progress import progress_bar
from vpvae_hf.training.config import log_warnings, parse_config
from vpvae_hf.training.run import train_tokenizer

from .train import recipes_of

_VOICES, _SECONDS, _SAMPLING_RATE = 32, 3.0, 16_000
_PITCHES = (90, 260)  # Hz
_HELD_OUT_SHARE = 0.125
_VALIDATIONS = 3

_WRITTEN = {
    "reconstruction.png": "spectrograms of held-out clips, decoded without quantization and from codes",
    "original.flac": "the clips",
    "reconstruction.flac": "their reconstructions",
    "README.md": "the model card, with all metrics",
}


def run(options: argparse.Namespace) -> None:
    """Train, fit, measure and save, and print where the results are."""
    started = time.monotonic()
    claim_output_folder(options.output, overwrite=options.overwrite)
    log_warnings()
    dataset = options.dataset or _voices(options.output / "voices")
    folder = train_tokenizer(_config(options, dataset))
    print(f"Done in {(time.monotonic() - started) / 60:.1f} minutes. Look at, and listen to:")
    for file, what in _WRITTEN.items():
        print(f"  {folder / file}  {what}")
    print(f'Use it: VPCodecModel.from_pretrained("{folder}")')


def _config(options: argparse.Namespace, dataset: str) -> AudioTrainingConfig:
    """The recipe's settings, for a run of a few minutes."""
    config = parse_config(AudioTrainingConfig, ["--config", str(recipes_of("audio")["small"])])
    config.data.name, config.data.column = dataset, options.column
    config.data.validation_share = _HELD_OUT_SHARE
    config.data.resample = config.data.downmix = True
    config.output_dir, config.overwrite_output_dir = str(options.output), options.overwrite
    config.seed, config.max_train_steps = options.seed, options.steps
    config.validation_steps = max(1, options.steps // _VALIDATIONS)
    config.checkpointing_steps = options.steps
    config.quantizer["codebook_size"] = options.codebook_size
    if options.quantizer == "vp":
        config.quantizer["perturbation"] = options.perturbation
    else:
        config.quantizer = {"kind": options.quantizer, "codebook_size": options.codebook_size}
    return config


def _voices(folder: Path) -> str:
    """A folder of synthesized sounds."""
    folder.mkdir(parents=True, exist_ok=True)
    low, high = _PITCHES
    with progress_bar(total=_VOICES, desc="Synthesizing voices (--dataset takes recordings)", unit="clip") as bar:
        for number in range(_VOICES):
            pitch = low * (high / low) ** (number / _VOICES)
            voice = synthetic_voice(_SECONDS, pitch=pitch, seed=number, sampling_rate=_SAMPLING_RATE)
            soundfile.write(folder / f"{number:02}.flac", voice.numpy(), _SAMPLING_RATE)
            bar.update()
    return str(folder)
