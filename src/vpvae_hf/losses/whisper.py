"""Distance between waveforms by the features of a frozen Whisper encoder: Radford et al. 2022, arXiv 2212.04356.

B items of C channels, W = B * C waveforms of T samples at 16 kHz; M mel bands of 2 P frames (10 ms), P positions
(20 ms) of the encoder, which is d wide.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, pad

from .spectral import check_waveforms

if TYPE_CHECKING:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

SAMPLING_RATE = 16000
# Mel filters' outputs below this power are silence, and a log-mel spectrogram keeps this many decades below its
# loudest bin: Whisper's normalization.
SILENT_POWER = 1e-10
DECADES = 8.0


class WhisperFeatures(nn.Module):
    """Whisper's features of waveforms at their own length, without padding to 30 s.

    Whisper pads its input to 30 s. Here the encoder reads only the waveform, padded to whole positions, and uses the
    first of its position embeddings, which are fixed sinusoids. For one second of sound this takes a thirtieth of the
    work, but the features differ from those of the padded waveform.

    Args:
        encoder: Whisper's encoder; this module changes its length with each call.
    """

    def __init__(self, encoder: "WhisperEncoder"):
        from transformers import WhisperFeatureExtractor

        super().__init__()
        extractor = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)
        self.encoder = encoder
        self.hop_length = extractor.hop_length
        self.samples_per_position = self.hop_length * encoder.conv1.stride[0] * encoder.conv2.stride[0]
        self.register_buffer("window", torch.hann_window(extractor.n_fft))
        self.register_buffer("mel_filters", torch.from_numpy(extractor.mel_filters.T).float())  # [M, 201]
        self.register_buffer("positions", encoder.embed_positions.weight.detach().clone())  # [1500, d], of 30 s
        self.requires_grad_(False).eval()

    def forward(self, waveforms: Tensor) -> Tensor:
        """The encoder's last hidden states: [W, T] float32 in [-1, 1], at 16 kHz -> [W, P, d], P = ceil(T / 320)."""
        length, limit = waveforms.shape[-1], len(self.positions) * self.samples_per_position
        if not 0 < length <= limit:
            raise ValueError(
                f"Whisper takes 1 to {limit} samples ({limit / SAMPLING_RATE:g} s) at once, got {length}: use shorter "
                "segments, or do without the Whisper loss"
            )
        mel = self.log_mel(pad(waveforms, (0, -length % self.samples_per_position)))
        # The encoder accepts only the length in its config, and always adds all of its position embeddings.
        count = -(-length // self.samples_per_position)
        self.encoder.embed_positions = nn.Embedding.from_pretrained(self.positions[:count]).eval()
        self.encoder.config.max_source_positions = count
        return self.encoder(mel).last_hidden_state

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """What `WhisperFeatureExtractor` computes, but differentiable: [W, T], T at least 201 -> [W, M, T // 160]."""
        spectrum = torch.stft(waveforms, len(self.window), self.hop_length, window=self.window, return_complex=True)
        power = torch.view_as_real(spectrum[..., :-1]).square().sum(dim=-1)
        log_mel = (self.mel_filters @ power).clamp(min=SILENT_POWER).log10()
        log_mel = torch.maximum(log_mel, log_mel.amax(dim=(1, 2), keepdim=True) - DECADES)
        return (log_mel + 4) / 4


@cache
def load_whisper_features(name: str) -> WhisperFeatures:
    """A frozen Whisper encoder in float32 and eval mode, loaded once per process and name.

    The global random state stays as it is, so that a run with this loss draws the same numbers as one without.

    It belongs to no model, so no model saves its weights.

    Args:
        name: folder or hub id of a Whisper model of any size, such as "openai/whisper-base".

    Raises:
        ValueError: another kind of model, or one without all of the encoder's weights.
        OSError: there is no such folder or repository, it lacks a file, or the hub cannot be reached or refuses access.
    """
    from transformers import AutoConfig, WhisperConfig, WhisperModel

    try:
        config = AutoConfig.from_pretrained(name)
        if not isinstance(config, WhisperConfig):
            raise ValueError(
                f"the Whisper loss needs a Whisper model, but {name} is a {config.model_type} model: name one such as "
                "openai/whisper-base, or do without the Whisper loss"
            )
        how = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        with torch.random.fork_rng(devices=[]):
            model, info = WhisperModel.from_pretrained(name, **how)
    except OSError as error:
        raise OSError(
            f"the Whisper loss needs the model {name}, but loading it fails ({error}): name a folder or a Whisper "
            "model on the hub, check the network, or do without the Whisper loss"
        ) from error
    missing = sorted(key for key in info["missing_keys"] if key.startswith("encoder."))
    if missing:
        raise ValueError(
            f"{name} lacks weights of Whisper's encoder ({', '.join(missing)}): save or download the model again, or "
            "do without the Whisper loss"
        )
    return WhisperFeatures(model.encoder)


def load_whisper_loss(model: str, sampling_rate: int) -> Callable[[Tensor, Tensor], Tensor]:
    """`whisper_loss` with its model, after loading it; errors as for `load_whisper_features`."""
    if sampling_rate != SAMPLING_RATE:
        raise ValueError(
            f"the waveforms have {sampling_rate} Hz, but Whisper needs {SAMPLING_RATE} Hz: train at {SAMPLING_RATE} "
            "Hz, or do without the loss 'whisper' (--losses.whisper 0)"
        )
    load_whisper_features(model)
    return partial(whisper_loss, model=model)


def whisper_loss(reconstruction: Tensor, original: Tensor, *, model: str) -> Tensor:
    """[] float32: mean squared difference of Whisper's features of both waveforms, 0 if they are equal.

    It is computed in float32 under autocast, too. The network follows the device of the reconstruction. The gradient
    reaches the reconstruction, but neither the original, whose features are computed without a graph, nor the network.

    Args:
        reconstruction, original: [B, C, T] in [-1, 1], 16 kHz, 30 s at most. Each channel is a waveform of its own.
        model: folder or hub id; see `load_whisper_features`.
    """
    check_waveforms("the Whisper loss", reconstruction, original)
    network = _network_on(reconstruction.device, model)
    with torch.autocast(reconstruction.device.type, enabled=False):
        with torch.no_grad():
            target = network(original.float().flatten(0, 1))
        return mse_loss(network(reconstruction.float().flatten(0, 1)), target)


def _network_on(device: torch.device, model: str) -> WhisperFeatures:
    # Parameters made or moved in inference mode could not serve a later training step.
    with torch.inference_mode(False):
        network = load_whisper_features(model)
        # Moving a module walks through all of its parts, even if they are on the device already.
        return network if next(network.parameters()).device == device else network.to(device)
