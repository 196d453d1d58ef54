"""Losses by the names under which a configuration weights them."""

import math
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from vpvae_hf.settings import did_you_mean

from .perceptual import load_lpips_network, lpips_loss
from .reconstruction import RECONSTRUCTION_LOSSES
from .spectral import multi_resolution_stft_loss
from .whisper import SAMPLING_RATE, load_whisper_features, whisper_loss

LPIPS, STFT, WHISPER = "lpips", "stft", "whisper"

# Of (reconstruction, original), both of one shape; gives [].
Loss = Callable[[Tensor, Tensor], Tensor]


def build_image_losses(weights: Mapping[str, float]) -> dict[str, Loss]:
    """The losses of images whose weight is positive, in the order of `weights`.

    LPIPS' network is loaded here, if "lpips" has a weight, so that what it lacks shows before training. It follows the
    device of its inputs.

    Args:
        weights: non-negative weight of each loss by its name: "l1", "l2", "lpips".

    Returns:
        Name -> function of (reconstruction, original), both of one shape; gives [], not weighted.

    Raises:
        ValueError: an unknown name, a weight that is negative or not finite, or no positive weight.
        ImportError, OSError: "lpips" has a weight, but not what it needs; see `load_lpips_network`.
    """
    losses = _weighted({**RECONSTRUCTION_LOSSES, LPIPS: lpips_loss}, weights)
    if LPIPS in losses:
        load_lpips_network()
    return losses


def build_audio_losses(
    weights: Mapping[str, float], *, whisper: str = "openai/whisper-base", sampling_rate: int = SAMPLING_RATE
) -> dict[str, Loss]:
    """The losses of waveforms whose weight is positive, in the order of `weights`.

    Whisper is loaded here, if "whisper" has a weight, so that what it lacks shows before training. It follows the
    device of its inputs.

    Args:
        weights: non-negative weight of each loss by its name: "l1", "l2", "stft", "whisper".
        whisper: folder or hub id of the Whisper model.
        sampling_rate: of the waveforms, in Hz.

    Returns:
        Name -> function of (reconstruction, original), both of one shape; gives [], not weighted.

    Raises:
        ValueError: an unknown name, a weight that is negative or not finite, no positive weight, or a sampling rate
            that Whisper was not trained on.
        ValueError, OSError: "whisper" has a weight, but not what it needs; see `load_whisper_features`.
    """
    stft_and_whisper = {STFT: multi_resolution_stft_loss, WHISPER: partial(whisper_loss, model=whisper)}
    losses = _weighted({**RECONSTRUCTION_LOSSES, **stft_and_whisper}, weights)
    if WHISPER in losses:
        if sampling_rate != SAMPLING_RATE:
            raise ValueError(
                f"the waveforms have {sampling_rate} Hz, but Whisper hears {SAMPLING_RATE} Hz: train at "
                f"{SAMPLING_RATE} Hz, or do without the loss {WHISPER!r}"
            )
        load_whisper_features(whisper)
    return losses


def _weighted(losses: Mapping[str, Loss], weights: Mapping[str, float]) -> dict[str, Loss]:
    valid = ", ".join(losses)
    for name, weight in weights.items():
        if name not in losses:
            raise ValueError(f"no loss {name!r}; {did_you_mean(name, losses)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of loss {name!r} is {weight}: give a finite number of at least 0")
    if not any(weights.values()):
        raise ValueError(f"no loss has a positive weight in {dict(weights)}: weight at least one of {valid}")
    return {name: losses[name] for name, weight in weights.items() if weight > 0}
