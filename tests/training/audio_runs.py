"""Small training runs on speech-like sounds made here."""

from pathlib import Path

from audio_files import RATE, encoded, write_shards
from image_runs import SHORT, VECTOR
from omegaconf import OmegaConf
from speech import speech

from vpvae_hf.modalities.audio import AudioTrainingConfig

ARCHITECTURE = {
    "encoder_hidden_size": 4,
    "decoder_hidden_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "sliding_window": 8,
}


def write_speech(folder: Path, *, shards: dict[str, list[int]], rate: int = RATE) -> str:
    """A data set of clips of 0.8 to 1.6 seconds: clips in each shard of each split."""
    number = 0
    for split, counts in shards.items():
        files = []
        for count in counts:
            numbers = range(number, number + count)
            number += count
            clips = [speech(0.8 + 0.1 * (n % 9), pitch=100 + 13 * (n % 11), seed=n).numpy() for n in numbers]
            files.append([encoded(clip, rate, "FLAC", "PCM_16") for clip in clips])
        write_shards(folder, files, split)
    return str(folder)


def settings(source: str, output: Path, **changes) -> dict:
    """Settings of a run of twelve steps, as nested dictionaries."""
    data = {"name": source, "segment_s": 0.2, "shuffle_buffer": 5, "workers": 0, **changes.pop("data", {})}
    own = {"model": {"architecture": ARCHITECTURE}, "losses": {"l1": 10.0, "stft": 1.0}, "validation_pictures": 2}
    return {**SHORT, **own, "output_dir": str(output), "quantizer": VECTOR, "data": data, **changes}


def configured(values: dict) -> AudioTrainingConfig:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(AudioTrainingConfig), values))
