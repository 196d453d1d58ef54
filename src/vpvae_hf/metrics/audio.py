"""Metrics of reconstructed audio.

All take a reconstruction, its original, and the sampling rate in Hz, and give [B] float32. Audio is [B, 1, T], B clips
of one channel, or one clip [1, T] or [T], and is clipped to [-1, 1]. If a metric is not defined for a clip, its value
is NaN, so that a mean can leave that clip out and count it. All raise a ValueError for other or different shapes, a
TypeError for audio that is not floating point, and an ImportError if packages of the extra "audio" are missing.
"""

import math
import warnings
from functools import cache

import numpy as np
import torch
from torch import Tensor

from vpvae_hf.tensors import as_floating

# The only sampling rate of wide-band PESQ.
_PESQ_RATE = 16_000
# The pesq package has room for 50 utterances, and a clip with more of them ends the whole process. Utterances and the
# pauses between them last at least 0.2 seconds each, so 20 seconds are safe whatever they contain.
_PESQ_SECONDS = 20
_MEL_BANDS = 80
_WINDOW_SECONDS, _HOP_SECONDS = 0.064, 0.016
# The logarithm's floor is below the magnitude that the last of 16 bits gives.
MAGNITUDE_FLOOR = 1e-5


def audio_quality(reconstruction: Tensor, original: Tensor, sampling_rate: int) -> dict[str, Tensor]:
    """`pesq_score` as "pesq", if it is defined at this rate, `stoi_score` as "stoi", and `mel_distance`."""
    pesq = {"pesq": pesq_score(reconstruction, original, sampling_rate)} if sampling_rate == _PESQ_RATE else {}
    return pesq | {
        "stoi": stoi_score(reconstruction, original, sampling_rate),
        "mel_distance": mel_distance(reconstruction, original, sampling_rate),
    }


def check_audio_packages() -> None:
    """Raise an ImportError if torchmetrics, pesq or pystoi is missing, before long work that needs `audio_quality`."""
    try:
        import pesq  # noqa: F401
        import pystoi  # noqa: F401
        import torchmetrics.functional.audio  # noqa: F401
    except ImportError as error:
        raise _missing("Measuring audio", error) from error


def pesq_score(reconstruction: Tensor, original: Tensor, sampling_rate: int) -> Tensor:
    """Wide-band PESQ (ITU-T P.862.2) of each clip of speech: MOS-LQO from about 1 (bad) to 4.64 (equal).

    It takes some 20 ms per second of audio on one CPU core. A clip of more than 20 seconds is divided into equal parts
    of at most 20 seconds, and their mean is taken. A sampling rate other than 16000 Hz raises a ValueError.

    PESQ is NaN if it is not defined: the clip is shorter than a quarter of a second, the original has no utterance, or
    the reconstruction is silent or has NaN. So a tokenizer that returns silence has no PESQ instead of a bad one. Parts
    of a longer clip for which it is not defined are left out.
    """
    if sampling_rate != _PESQ_RATE:
        raise ValueError(
            f"wide-band PESQ is defined at {_PESQ_RATE} Hz, got {sampling_rate} Hz: resample both waveforms to "
            f"{_PESQ_RATE} Hz, or measure STOI and the mel distance alone"
        )
    made, true = _clips(reconstruction, original)
    try:
        from pesq import PesqError
        from torchmetrics.functional.audio.pesq import perceptual_evaluation_speech_quality
    except ImportError as error:
        raise _missing("PESQ", error) from error

    def score(made: Tensor, true: Tensor) -> float:
        try:
            # The function divides by the peak, which may be zero.
            with np.errstate(invalid="ignore"):
                return float(perceptual_evaluation_speech_quality(made, true, fs=_PESQ_RATE, mode="wb"))
        except (PesqError, ValueError):  # a ValueError if a silent reconstruction makes it compute NaN
            return math.nan

    parts = max(1, math.ceil(made.shape[-1] / (_PESQ_SECONDS * _PESQ_RATE)))
    scores = [
        [score(*part) for part in zip(a.tensor_split(parts), b.tensor_split(parts), strict=True)]
        for a, b in zip(made.cpu(), true.cpu(), strict=True)
    ]
    return torch.tensor(scores).nanmean(dim=1)


def stoi_score(reconstruction: Tensor, original: Tensor, sampling_rate: int) -> Tensor:
    """STOI (Taal et al. 2011, not extended) of clips of speech: 1 if as intelligible as the original, about 0 if not.

    Clips are resampled to 10000 Hz. STOI is NaN if it is not defined: less than 0.4 seconds of the original are not
    silent, or either has NaN. A silent reconstruction has 0.
    """
    made, true = _clips(reconstruction, original)
    try:
        import pystoi  # noqa: F401  (torchmetrics would name another remedy)
        from torchmetrics.functional.audio.stoi import short_time_objective_intelligibility
    except ImportError as error:
        raise _missing("STOI", error) from error
    scores = []
    for pair in zip(made.cpu(), true.cpu(), strict=True):
        try:
            with warnings.catch_warnings():
                # If a clip is too short, the package warns and gives 1e-5, or fails if not a single frame remains.
                warnings.simplefilter("error", RuntimeWarning)
                score = float(short_time_objective_intelligibility(*pair, fs=sampling_rate))
        except (RuntimeWarning, np.exceptions.AxisError):
            score = math.nan
        scores.append(score if pair[1].any() else math.nan)
    return torch.tensor(scores)


def mel_distance(reconstruction: Tensor, original: Tensor, sampling_rate: int) -> Tensor:
    """Mean absolute difference of the log-mel spectrograms of each clip: 0 if they are equal; 1 is 8.7 dB.

    See `log_mel_spectrogram`. Published values may use other windows, bands or logarithms; do not compare with those.
    It is defined for silence and for clips of any length.
    """
    made, true = (log_mel_spectrogram(clips, sampling_rate) for clips in _clips(reconstruction, original))
    return (made - true).abs().mean(dim=(1, 2))


def log_mel_spectrogram(waveforms: Tensor, sampling_rate: int) -> Tensor:
    """Natural logarithm of mel-band magnitudes, floored at 1e-5: [B, T] -> [B, 80, 1 + T // hop], low bands first.

    Magnitudes are those of a short-time Fourier transform of 64 ms (1024 samples at 16 kHz), with a periodic Hann
    window of that length, every 16 ms (256 samples). Each frame is centred on its sample, with zeros around the clip;
    nothing is normalized. Magnitudes are summed into 80 triangular bands between 0 Hz and half the sampling rate, on
    Slaney's mel scale (linear up to 1 kHz), each of unit area over frequency in Hz.
    """
    waveforms = as_floating(waveforms, "waveforms")
    window, hop = round(_WINDOW_SECONDS * sampling_rate), round(_HOP_SECONDS * sampling_rate)
    how = {"window": torch.hann_window(window, device=waveforms.device), "pad_mode": "constant"}
    spectrum = torch.stft(waveforms.float(), n_fft=window, hop_length=hop, **how, return_complex=True)
    bands = _mel_filters(sampling_rate, window).to(waveforms.device) @ spectrum.abs()
    return bands.clamp_min(MAGNITUDE_FLOOR).log()


@cache
def _mel_filters(sampling_rate: int, window: int) -> Tensor:
    """[bands, frequencies]."""
    from transformers.audio_utils import mel_filter_bank

    how = {"norm": "slaney", "mel_scale": "slaney", "sampling_rate": sampling_rate}
    filters = mel_filter_bank(window // 2 + 1, _MEL_BANDS, 0.0, sampling_rate / 2, **how)
    return torch.from_numpy(filters).float().T


def _clips(reconstruction: Tensor, original: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [B, T] float32 in [-1, 1]."""
    pair = [as_floating(clips, "waveforms").detach() for clips in (reconstruction, original)]
    shapes = [list(clips.shape) for clips in pair]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the reconstruction must have the shape of the original, got {shapes[0]} and {shapes[1]}: cut one to the "
            "other's length"
        )
    if not 1 <= len(shapes[0]) <= 3 or (len(shapes[0]) > 1 and shapes[0][-2] != 1):
        raise ValueError(
            f"waveforms must be [B, 1, T], [1, T] or [T], got {shapes[0]}: give clips [B, T] as x[:, None], and each "
            "channel as a clip"
        )
    return tuple(clips.float().clamp(-1, 1).reshape(-1, shapes[0][-1]) for clips in pair)


def _missing(metric: str, error: ImportError) -> ImportError:
    return ImportError(f"{metric} needs packages of the extra \"audio\" ({error}): pip install 'vpvae_hf[audio]'")
