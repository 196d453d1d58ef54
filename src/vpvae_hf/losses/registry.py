"""Losses by name, as a configuration weights them. To add a loss, write a function and a line in a table here."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from vpvae_hf.settings import did_you_mean

from .features import EFFICIENTNET, load_feature_loss
from .perceptual import load_lpips_loss
from .spectral import multi_resolution_stft_loss
from .whisper import SAMPLING_RATE, load_whisper_loss

# Function of (reconstruction, original), both of one shape; gives []. It checks the shapes that it needs, and computes
# in float32 under autocast if half precision is too coarse for it.
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loaded:
    """A loss that needs a network: `load` gives the loss, and raises if the network is missing."""

    load: Callable[[], Loss]


def log_l2_loss(reconstruction: Tensor, original: Tensor) -> Tensor:
    """Mean over the items of ln(1 + 10^6 m), m an item's mean squared error; for signals in [-1, 1].

    Items count as in the mean PSNR, where halving an item's error is worth 3 dB however large the error is. The mean
    squared error itself, in contrast, is mostly that of the few items with the largest errors.
    """
    errors = (reconstruction.float() - original.float()).square().flatten(1).mean(dim=1)
    return (1e6 * errors).log1p().mean()


# For any signal.
RECONSTRUCTION_LOSSES: dict[str, Loss | Loaded] = {"l1": l1_loss, "l2": mse_loss, "log_l2": log_l2_loss}


def image_losses(*, feature_network: str = EFFICIENTNET) -> dict[str, Loss | Loaded]:
    """The losses of images [B, C, H, W] in [-1, 1] by name; see `load_feature_network`."""
    return {
        **RECONSTRUCTION_LOSSES,
        "lpips": Loaded(load_lpips_loss),
        "features": Loaded(partial(load_feature_loss, feature_network)),
    }


def audio_losses(
    *, whisper: str = "openai/whisper-base", sampling_rate: int = SAMPLING_RATE
) -> dict[str, Loss | Loaded]:
    """The losses of waveforms [B, C, T] in [-1, 1], at a sampling rate in Hz, by name; see `load_whisper_features`."""
    return {
        **RECONSTRUCTION_LOSSES,
        "stft": multi_resolution_stft_loss,
        "whisper": Loaded(partial(load_whisper_loss, whisper, sampling_rate)),
    }


def build_losses(weights: Mapping[str, float], available: Mapping[str, Loss | Loaded]) -> dict[str, Loss]:
    """The losses with a positive weight, in the order of `weights`.

    Their networks are loaded here, so that a missing one is noticed before training; they follow the device of their
    inputs.

    Args:
        weights: non-negative weight of each loss by its name; it is not applied.
        available: the losses that there are, e.g. `image_losses()` or `audio_losses()`.

    Raises:
        ValueError: an unknown name, a weight that is negative or not finite, or no positive weight.
        ImportError, OSError: a network cannot be loaded.
    """
    for name, weight in weights.items():
        if name not in available:
            raise ValueError(f"no loss {name!r}; {did_you_mean(name, available)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of loss {name!r} is {weight}: give a finite number of at least 0")
    if not any(weights.values()):
        valid = ", ".join(available)
        raise ValueError(f"no loss has a positive weight in {dict(weights)}: weight at least one of {valid}")
    chosen = {name: available[name] for name, weight in weights.items() if weight > 0}
    return {name: loss.load() if isinstance(loss, Loaded) else loss for name, loss in chosen.items()}
