"""Audio for a `VPCodecModel`.

Shapes: T samples of a clip, n = ceil(T / hop) codes; S samples of a training segment, a multiple of the hop.
"""

import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from vpvae_hf.data import AudioClip, AudioSegment, MaskedAudioSegment, code_dtype, open_audio, readable_suffixes
from vpvae_hf.files import write_atomically
from vpvae_hf.losses import Loss, STFTDiscriminator, audio_losses, build_losses
from vpvae_hf.metric_labels import metric_label
from vpvae_hf.metrics import MetricFn, audio_quality, check_audio_packages, mel_distance, spectrogram_grid
from vpvae_hf.metrics.codecs import Opus
from vpvae_hf.models import VPCodecConfig, VPCodecModel
from vpvae_hf.settings import is_number, require
from vpvae_hf.tensors import to_device

from .base import Modality
from .config import AdversarialConfig, DataConfig, TrainingConfig, loss_help, option

# Length of each clip that is shown and played, and of the silence between two.
_SHOWN_SECONDS, _PAUSE_SECONDS = 3.0, 0.5
# The most channels that libsndfile takes.
_MOST_CHANNELS = 1024
# Length of the segments that `vpvae fit` reads.
_FITTED_SECONDS = 2.0
# Longest part of a clip that a picture of it shows.
_COMPARED_SECONDS = 20


@dataclass
class AudioDataConfig(DataConfig):
    """Which audio to train and validate on."""

    segment_s: float = option(1.0, "length of a training segment in seconds, rounded to whole codes")
    resample: bool = option(False, "convert files of another sampling rate, which otherwise raise an error")
    downmix: bool = option(False, "average the channels of files that have several, which otherwise raise an error")
    validation_examples: int | None = option(
        64, "clips for validation during training; null: all. The final evaluation uses all"
    )

    def __post_init__(self):
        super().__post_init__()
        require(self.segment_s > 0, "data.segment_s", self.segment_s, "positive")


@dataclass
class AudioAdversarialConfig(AdversarialConfig):
    """A discriminator of spectrograms."""

    feature_matching: float = option(
        2.0, "weight of the distance between the discriminator's features, relative to adversarial.weight"
    )
    channels: int = option(32, "width of the discriminator's layers")


@dataclass
class AudioTrainingConfig(TrainingConfig):
    """A training run of an audio tokenizer."""

    data: AudioDataConfig = field(default_factory=AudioDataConfig)
    losses: dict[str, float] = option({}, loss_help(audio_losses()))
    adversarial: AudioAdversarialConfig = field(default_factory=AudioAdversarialConfig)
    whisper: str = option("openai/whisper-base", "folder or hub id of the Whisper model for the loss whisper")


class AudioModality(Modality):
    """Segments of clips in training; whole clips in evaluations and files of codes."""

    model_class, config_class = VPCodecModel, AudioTrainingConfig
    train_items = "segments"
    headline_metrics = ("pesq", "stoi")  # PESQ is defined only at 16 kHz
    one_by_one = True
    batches_decoded = 4  # the clips of this many batches are sorted by length, so that batches have little padding
    takes_validation_share = True
    written_suffixes = (".wav", ".flac", ".ogg")
    rate_unit = "kbit/s"
    _open = staticmethod(open_audio)

    def new_model(self, config: AudioTrainingConfig) -> VPCodecModel:
        return VPCodecModel(VPCodecConfig(**config.model.architecture, quantizer=dict(config.quantizer) or None))

    def losses(self, config: AudioTrainingConfig, model: VPCodecModel) -> Mapping[str, Loss]:
        available = audio_losses(whisper=config.whisper, sampling_rate=model.config.sampling_rate)
        return build_losses(config.loss_weights, available)

    def adversarial(
        self, config: AudioTrainingConfig, model: VPCodecModel
    ) -> tuple[AudioAdversarialConfig, nn.Module] | None:
        settings = config.adversarial
        return (settings, STFTDiscriminator(settings.channels)) if settings.weight else None

    def data_config(self, model: VPCodecModel, **given: Any) -> AudioDataConfig:
        return super().data_config(model, **{"segment_s": _FITTED_SECONDS, **given})

    def train_transform(self, data: AudioDataConfig, model: VPCodecModel) -> AudioSegment:
        return AudioSegment(length=_segment(data, model), **_reading(data, model))

    def fit_transform(self, data: AudioDataConfig, model: VPCodecModel) -> MaskedAudioSegment:
        hop = model.config.hop_length
        return MaskedAudioSegment(length=_segment(data, model), shortest=hop, **_reading(data, model))

    def eval_transform(self, data: AudioDataConfig, model: VPCodecModel) -> AudioClip:
        return AudioClip(shortest=model.config.hop_length, **_reading(data, model))

    def shown_transform(self, data: AudioDataConfig, model: VPCodecModel) -> AudioSegment:
        length = round(_SHOWN_SECONDS * model.config.sampling_rate)
        return AudioSegment(length=length, position="start", **_reading(data, model))

    def is_random(self, data: AudioDataConfig) -> bool:
        return True

    def metric_fn(self, model: VPCodecModel, extra: Collection[str] = ()) -> MetricFn:
        check_audio_packages()
        return partial(audio_quality, sampling_rate=model.config.sampling_rate)

    def codec(self, model: VPCodecModel) -> Opus:
        return Opus(model.config.sampling_rate)

    def code_features(self, data: AudioDataConfig, model: VPCodecModel) -> dict[str, Any]:
        """ "codes" [n], or [G, n] if a token has several, and "num_samples", the T to cut decoded audio to."""
        from datasets import List, Value

        codes = List(Value(code_dtype(model.quantize.codebook_size)))
        codes = codes if model.quantize.code_groups == 1 else List(codes)
        return {"codes": codes, "num_samples": Value("int64")}

    def item_of(self, value: Any, transform: AudioClip) -> Tensor:
        """Also takes arrays [T] or [channels, T], and mappings of "array" and "sampling_rate"."""
        array, rate = value, transform.sampling_rate
        if isinstance(value, Mapping) and "array" in value:
            array, rate = value["array"], value.get("sampling_rate")
        if isinstance(array, np.ndarray | list):
            value = {"bytes": _as_file(np.asarray(array), rate)}
        return super().item_of(value, transform)

    def code_order(self, items: list[Tensor]) -> Sequence[int]:
        """By length, so that little of a batch is padding."""
        return sorted(range(len(items)), key=lambda place: len(items[place]))

    def encode(self, items: list[Tensor], transform: AudioClip, model: VPCodecModel, refine_steps: int = 0) -> Tensor:
        lengths = torch.tensor([len(clip) for clip in items])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        audio = to_device(pad_sequence(items, batch_first=True), model.device)
        mask = to_device(mask, model.device)
        return model.tokenize(transform.model_input(audio), mask, refine_steps=refine_steps)

    def code_row(self, item: Tensor, codes: np.ndarray, model: VPCodecModel) -> dict[str, Any]:
        codes = codes[: -(-len(item) // model.config.hop_length)]
        return {"codes": codes if codes.ndim == 1 else codes.T, "num_samples": len(item)}

    def code_settings(self, data: AudioDataConfig, model: VPCodecModel) -> dict[str, Any]:
        return {"hop_length": model.config.hop_length, **_reading(data, model)}

    def resolution(self, model: VPCodecModel) -> str:
        return f"{model.config.frame_rate * model.quantize.code_groups:.4g} codes per second"

    def picture(
        self,
        rows: list[Tensor],
        model: VPCodecModel,
        labels: Sequence[str] = (),
        captions: Sequence[Sequence[str]] = (),
    ) -> np.ndarray:
        return spectrogram_grid(rows, model.config.sampling_rate, labels, captions)

    def quality_captions(self, reconstruction: Tensor, original: Tensor, model: VPCodecModel) -> list[str]:
        label = metric_label("mel_distance")
        distances = mel_distance(reconstruction, original, model.config.sampling_rate)
        return [f"{label.label} {label.format(each)}" for each in distances]

    def rate(self, model: VPCodecModel, bits: float) -> float:
        return bits * model.config.frame_rate / 1000

    def read_suffixes(self) -> frozenset[str]:
        return readable_suffixes("audio")

    def read_file(self, file: Path, model: VPCodecModel) -> tuple[Tensor, dict[str, int]]:
        """The clip is resampled, and its channels are averaged, if necessary."""
        data = AudioDataConfig(resample=True, downmix=True)
        clip = self.item_of(file, self.eval_transform(data, model))
        return clip[None, None], {"num_samples": len(clip), "sampling_rate": model.config.sampling_rate}

    def cut(self, signal: Tensor, size: Mapping[str, int]) -> Tensor:
        return signal[..., : size["num_samples"]]

    def write_file(self, path: Path, signal: Tensor, model: VPCodecModel) -> None:
        import soundfile

        rate, waveform = model.config.sampling_rate, signal[0, 0].float().cpu().clamp(-1, 1).numpy()
        kind = path.suffix[1:].upper()
        with write_atomically(path) as aside, soundfile.SoundFile(aside, "w", rate, 1, format=kind) as opened:
            # One second at a time: libsndfile's OGG encoder ends the process if it gets minutes at once.
            for start in range(0, len(waveform), rate):
                opened.write(waveform[start : start + rate])

    def described(self, size: Mapping[str, int], bits: float) -> tuple[str, str]:
        seconds = size["num_samples"] / size["sampling_rate"]
        return f"{seconds:.2f} s at {size['sampling_rate']} Hz", f"{bits / seconds / 1000:.2f} kbit/s"

    def parts(self, size: Mapping[str, int], model: VPCodecModel) -> int:
        frames = math.ceil(size["num_samples"] / model.config.hop_length)
        return math.ceil(frames / model.config.chunk_frames)

    def compared(self, original: Tensor, decoded: Tensor, codes: Tensor, model: VPCodecModel) -> np.ndarray:
        """Spectrograms of at most the first 20 seconds, one above the other."""
        samples = _COMPARED_SECONDS * model.config.sampling_rate
        return self.picture([original[..., :samples], decoded[..., :samples]], model, ["original", "from codes"])

    def write_sounds(self, folder: Path, original: Tensor, reconstruction: Tensor, model: VPCodecModel) -> None:
        import soundfile

        rate = model.config.sampling_rate
        for name, clips in (("original", original), ("reconstruction", reconstruction)):
            joined = pad(clips.float().cpu(), (0, round(_PAUSE_SECONDS * rate))).flatten()
            soundfile.write(folder / f"{name}.flac", joined.clamp(-1, 1).numpy(), rate)


def _segment(data: AudioDataConfig, model: VPCodecModel) -> int:
    """S, the samples of a training segment."""
    return max(1, round(data.segment_s * model.config.frame_rate)) * model.config.hop_length


def _reading(data: AudioDataConfig, model: VPCodecModel) -> dict[str, Any]:
    return {"sampling_rate": model.config.sampling_rate, "resample": data.resample, "downmix": data.downmix}


def _as_file(audio: np.ndarray, rate: int) -> bytes:
    """A WAV file of audio [T] or [channels, T], so that it is checked and converted as files are."""
    import soundfile

    # All values of the column have this type, so this is not a damaged file.
    if audio.dtype.name not in ("float32", "float64", "int16", "int32"):
        raise TypeError(
            f"an array of type {audio.dtype} is no audio clip; give floating point of 32 or 64 bits (full scale is 1) "
            "or integers of 16 or 32 bits"
        )
    if audio.ndim not in (1, 2) or (audio.ndim == 2 and not 1 <= len(audio) <= _MOST_CHANNELS):
        shape = list(audio.shape)
        raise ValueError(f"audio must be [T] or [channels, T] of 1 to {_MOST_CHANNELS} channels, got {shape}")
    if not is_number(rate) or rate != int(rate) or rate < 1:
        raise ValueError(f'the "sampling_rate" of an array must be an integer of at least 1 (Hz), got {rate!r}')
    buffer = io.BytesIO()
    subtype = {"int16": "PCM_16", "int32": "PCM_32"}.get(audio.dtype.name, "FLOAT")
    soundfile.write(buffer, audio.T, int(rate), format="WAV", subtype=subtype)
    return buffer.getvalue()
