"""Training tokenizers of audio."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn.functional import pad

from vpvae_hf.data import AudioClip, AudioSegment, MaskedAudioSegment, Transform, open_audio
from vpvae_hf.losses import Loss, audio_losses, build_losses
from vpvae_hf.metric_labels import describe_metrics
from vpvae_hf.metrics import (
    MetricFn,
    ReconstructionQuality,
    audio_quality,
    check_audio_packages,
    spectrogram_grid,
)
from vpvae_hf.models import VPCodecConfig, VPCodecModel

from .config import AudioTrainingConfig
from .modality import Modality

# Of each clip that is shown and played, and the silence between two.
_SHOWN_SECONDS, _PAUSE_SECONDS = 3.0, 0.5
_SUMMARY = ("pesq", "stoi", "mel_distance", "code_usage")


class AudioModality(Modality):
    """Segments of audio for a `VPCodecModel`."""

    examples, measured = "segments", "clips"
    library = "transformers"
    unquantized = None
    open = staticmethod(open_audio)

    def _new_model(self, config: AudioTrainingConfig) -> VPCodecModel:
        return VPCodecModel(VPCodecConfig(**config.model.architecture, quantizer=dict(config.quantizer) or None))

    def load(self, name: str, **places: str) -> VPCodecModel:
        return VPCodecModel.from_pretrained(name, **places)

    def losses(self, config: AudioTrainingConfig, model: VPCodecModel) -> Mapping[str, Loss]:
        rate = model.config.sampling_rate
        return build_losses(config.loss_weights, audio_losses(whisper=config.whisper, sampling_rate=rate))

    def training_cut(self, config: AudioTrainingConfig, model: VPCodecModel) -> Transform:
        return AudioSegment(length=self._segment(config, model), **self._reading(config, model))

    def fitting_cut(self, config: AudioTrainingConfig, model: VPCodecModel) -> Transform:
        hop = model.config.hop_length
        return MaskedAudioSegment(length=self._segment(config, model), shortest=hop, **self._reading(config, model))

    def held_out_cut(self, config: AudioTrainingConfig, model: VPCodecModel) -> Transform:
        return AudioClip(shortest=model.config.hop_length, **self._reading(config, model))

    def shown_cut(self, config: AudioTrainingConfig, model: VPCodecModel) -> Transform:
        length = round(_SHOWN_SECONDS * model.config.sampling_rate)
        return AudioSegment(length=length, position="start", **self._reading(config, model))

    def held_out_batch_size(self, config: AudioTrainingConfig) -> int:
        return 1  # clips differ in length

    def varies(self, config: AudioTrainingConfig) -> bool:
        return True

    def quality(self, model: VPCodecModel, config: AudioTrainingConfig, *, final: bool) -> MetricFn:
        check_audio_packages()
        return partial(audio_quality, sampling_rate=model.config.sampling_rate)

    def summary(self, quality: ReconstructionQuality) -> str:
        return f"{quality.items} validation clips: {describe_metrics(quality.metrics, _SUMMARY)}"

    def factor(self, model: VPCodecModel) -> str:
        return f"hop {model.config.hop_length} ({model.config.frame_rate:.2f} codes a second)"

    def picture(self, rows: list[Tensor], model: VPCodecModel) -> np.ndarray:
        return spectrogram_grid(rows, sampling_rate=model.config.sampling_rate)

    def write_sounds(self, folder: Path, original: Tensor, reconstruction: Tensor, model: VPCodecModel) -> None:
        import soundfile

        rate = model.config.sampling_rate
        for name, clips in (("original", original), ("reconstruction", reconstruction)):
            joined = pad(clips.float().cpu(), (0, round(_PAUSE_SECONDS * rate))).flatten()
            soundfile.write(folder / f"{name}.flac", joined.clamp(-1, 1).numpy(), rate)

    def _segment(self, config: AudioTrainingConfig, model: VPCodecModel) -> int:
        """Samples, of whole codes."""
        return max(1, round(config.data.segment_s * model.config.frame_rate)) * model.config.hop_length

    def _reading(self, config: AudioTrainingConfig, model: VPCodecModel) -> dict:
        data, rate = config.data, model.config.sampling_rate
        return {"sampling_rate": rate, "resample": data.resample, "downmix": data.downmix}
