"""Pictures of images and audio: a row per version, in which all examples stand side by side."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool1d

from vpvae_hf.pixels import from_pixel_values
from vpvae_hf.tensors import as_tensor

from .audio import MAGNITUDE_FLOOR, log_mel_spectrogram

_IMAGE_GAP, _CLIP_GAP = 4, 8
_WAVE_HEIGHT = 48
# Pixels per mel band and per step in time.
_ENLARGED = 2
# What is 80 dB below the loudest band of the original is black; as a natural logarithm.
_RANGE = 80 / 20 * math.log(10)
# From quiet to loud. Lightness rises in equal steps of the OKLab colour space (Ottosson 2020), while the hue turns from
# blue over red to yellow: equal differences look equal, in grey too.
_COLOURS = np.frombuffer(
    bytes.fromhex("05050d 2a0343 5b075a 930f5f cb2350 f25530 fc9643 fdcc7f fffada"), dtype=np.uint8
).reshape(-1, 3)
# Codes that tell the range of colours of all.
_MOST_RANKED = 1 << 20
_WAVE_COLOUR, _WAVE_GROUND = _COLOURS[2], 240


def image_grid(rows: list[Tensor]) -> np.ndarray:
    """A picture [height, width, 3] uint8 of rows of images, each [B, C, H, W] in [-1, 1], of one shape; white gaps.

    Images have one channel (grey), three (RGB) or four (RGBA, shown over white).
    """
    pixels = from_pixel_values(as_rgb(_stacked(rows)))
    return _with_gaps([_with_gaps(row, 1, _IMAGE_GAP) for row in pixels], 0, _IMAGE_GAP)


def as_rgb(images: Tensor) -> Tensor:
    """[..., 3, H, W] in [-1, 1] of grey, RGB or RGBA images [..., C, H, W]; transparency is laid over white."""
    images = images.detach().float().cpu().clamp(-1, 1)
    if images.shape[-3] == 4:
        colour, opacity = images[..., :3, :, :], (images[..., 3:, :, :] + 1) / 2
        return colour * opacity + (1 - opacity)
    return images.expand(*images.shape[:-3], 3, -1, -1)


def code_colours(code_latents: Tensor) -> Tensor:
    """Colours [B, h, w, 3] in [0, 1] of codes: the first three dimensions of their latents [B, h, w, d]."""
    latents = code_latents.detach().float().cpu()[..., :3]
    latents = torch.nn.functional.pad(latents, (0, 3 - latents.shape[-1]))
    several = latents.flatten(0, 2)
    several = several[:: math.ceil(len(several) / _MOST_RANKED)]  # quantile takes no more than 2^24 values
    low, high = several.quantile(torch.tensor([0.02, 0.98]), dim=0)
    return ((latents - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)


def spectrogram_grid(rows: list[Tensor], sampling_rate: int) -> np.ndarray:
    """A picture [height, width, 3] uint8 of rows of clips: above the waveform, below it the log-mel spectrogram.

    Time runs to the right, 8 ms per pixel; frequency upwards on the mel scale, see `log_mel_spectrogram`. Brightness
    covers the 80 dB below the original's loudest band. A clip has one scale of amplitude and one of brightness in all
    rows, so that they compare.

    Args:
        rows: each [B, 1, T] in [-1, 1], of one shape; the first row is the original.
        sampling_rate: in Hz.
    """
    clips = _stacked(rows).clamp(-1, 1).squeeze(2)
    mels = log_mel_spectrogram(clips.flatten(0, 1), sampling_rate).unflatten(0, clips.shape[:2])
    loudest = mels[0].amax(dim=(1, 2))[:, None, None]
    quietest = (loudest - _RANGE).clamp_min(math.log(MAGNITUDE_FLOOR))
    # The range of silence is zero.
    shades = ((mels - quietest) / (loudest - quietest).clamp_min(1)).clamp(0, 1).flip(2).numpy()
    peaks = clips.abs().amax(dim=(0, 2)).clamp_min(1e-5)[:, None]
    panels = [
        [np.concatenate([_waveform(wave, shade.shape[1]), _coloured(shade)]) for wave, shade in zip(*row, strict=True)]
        for row in zip(clips / peaks, shades, strict=True)
    ]
    return _with_gaps([_with_gaps(row, 1, _CLIP_GAP) for row in panels], 0, _CLIP_GAP)


def in_spectrogram_colours(shades: np.ndarray) -> np.ndarray:
    """Colours [..., 3] uint8 of shades [...] from 0, quiet, to 1, loud."""
    places = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(shades, places, _COLOURS[:, channel]) for channel in range(3)], axis=-1)
    return colours.round().astype(np.uint8)


def _stacked(rows: list[Tensor]) -> Tensor:
    return torch.stack([as_tensor(row, "rows").detach().float().cpu() for row in rows])


def _coloured(shade: np.ndarray) -> np.ndarray:
    """[bands, frames] in [0, 1] -> [height, width, 3] uint8."""
    return in_spectrogram_colours(shade).repeat(_ENLARGED, axis=0).repeat(_ENLARGED, axis=1)


def _waveform(wave: Tensor, frames: int) -> np.ndarray:
    """[T] in [-1, 1] -> [height, width, 3] uint8: from the least to the greatest sample of each pixel's time."""
    extremes = adaptive_max_pool1d(torch.stack([wave, -wave]), frames * _ENLARGED).numpy()
    top, bottom = (((1 - level) / 2 * (_WAVE_HEIGHT - 1)).round() for level in (extremes[0], -extremes[1]))
    height = np.arange(_WAVE_HEIGHT)[:, None]
    drawn = (height >= top) & (height <= bottom)
    return np.where(drawn[..., None], _WAVE_COLOUR, _WAVE_GROUND).astype(np.uint8)


def _with_gaps(pictures: Sequence[np.ndarray], axis: int, width: int) -> np.ndarray:
    """Pictures [height, width, 3] of one shape, side by side or one above the other, with white gaps."""
    shape = list(pictures[0].shape)
    shape[axis] = width
    gap = np.full(shape, 255, dtype=np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], axis=axis)
