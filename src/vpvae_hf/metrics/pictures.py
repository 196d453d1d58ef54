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
from .sheets import INK, sheet, write_texts

_IMAGE_GAP, _CLIP_GAP = 4, 8
_WAVE_HEIGHT = 48
# Pixels per mel band and per step in time.
_ENLARGED = 2
# A band 80 dB below the loudest band of the original is black; as a natural logarithm.
_RANGE = 80 / 20 * math.log(10)
# From quiet to loud. Lightness rises in equal steps of the OKLab colour space (Ottosson 2020), while the hue turns from
# blue over red to yellow: equal differences look equal, in grey too.
_COLOURS = np.frombuffer(
    bytes.fromhex("05050d 2a0343 5b075a 930f5f cb2350 f25530 fc9643 fdcc7f fffada"), dtype=np.uint8
).reshape(-1, 3)
# The most codes from which the range of colours is found.
_MOST_RANKED = 1 << 20
_WAVE_COLOUR, _WAVE_GROUND = _COLOURS[2], 240
# Length of the longer side, in pixels, up to which small images are enlarged for people to look at.
SHOWN_SIDE = 256
# Pixels of the axes beside and below a spectrogram, and of their marks; the marks' frequencies, kHz, and the time
# between two, seconds.
_FREQUENCY_AXIS, _TIME_AXIS, _MARK = 40, 24, 5
_FREQUENCIES, _TIME_STEP = (0.5, 1, 2, 4, 8, 16), 0.5
_PIXELS_PER_SECOND = 125


def image_grid(
    rows: list[Tensor],
    labels: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    *,
    shown_side: int = 1,
) -> np.ndarray:
    """A picture [height, width, 3] uint8 of rows of images, each [B, C, H, W] in [-1, 1], of one shape; white gaps.

    Images have one channel (grey), three (RGB) or four (RGBA, shown over white).

    Args:
        labels: what to write before each row; empty for nothing.
        captions: for each row, what to write below each of its images; empty for nothing.
        shown_side: enlarge each pixel to a square so large that the longer side of an image has at least this length.
    """
    pixels = from_pixel_values(as_rgb(_stacked(rows)))
    factor = math.ceil(shown_side / max(pixels.shape[2:4]))
    return sheet(pixels.repeat(factor, axis=2).repeat(factor, axis=3), _IMAGE_GAP, labels, captions)


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


def spectrogram_grid(
    rows: list[Tensor], sampling_rate: int, labels: Sequence[str] = (), captions: Sequence[Sequence[str]] = ()
) -> np.ndarray:
    """A picture [height, width, 3] uint8 of rows of clips: above the waveform, below it the log-mel spectrogram.

    Time runs to the right, 8 ms per pixel; frequency upwards on the mel scale, see `log_mel_spectrogram`. Both have
    axes, in seconds and kHz. Brightness covers the 80 dB below the original's loudest band. A clip has the same scale
    of amplitude and the same scale of brightness in all rows, so that rows can be compared.

    Args:
        rows: each [B, 1, T] in [-1, 1], of one shape; the first row is the original.
        sampling_rate: in Hz.
        labels, captions: as for `image_grid`.
    """
    clips = _stacked(rows).clamp(-1, 1).squeeze(2)
    mels = log_mel_spectrogram(clips.flatten(0, 1), sampling_rate).unflatten(0, clips.shape[:2])
    loudest = mels[0].amax(dim=(1, 2))[:, None, None]
    quietest = (loudest - _RANGE).clamp_min(math.log(MAGNITUDE_FLOOR))
    # For silence the range is zero.
    shades = ((mels - quietest) / (loudest - quietest).clamp_min(1)).clamp(0, 1).flip(2).numpy()
    peaks = clips.abs().amax(dim=(0, 2)).clamp_min(1e-5)[:, None]
    panels = [
        [np.concatenate([_waveform(wave, shade.shape[1]), _coloured(shade)]) for wave, shade in zip(*row, strict=True)]
        for row in zip(clips / peaks, shades, strict=True)
    ]
    height, width, _ = panels[0][0].shape
    axes = {"left": _frequency_axis(height, sampling_rate), "below": _time_axis(width)}
    return sheet(panels, _CLIP_GAP, labels, captions, **axes)


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


def _frequency_axis(height: int, sampling_rate: int) -> np.ndarray:
    """[height, width, 3] uint8, left of a waveform above its spectrogram: kHz, each label at its frequency."""
    from transformers.audio_utils import hertz_to_mel

    highest = sampling_rate / 2000
    shown = [each for each in _FREQUENCIES if each <= highest]
    shares = hertz_to_mel(1000 * np.array(shown), "slaney") / hertz_to_mel(1000 * highest, "slaney")
    places = _WAVE_HEIGHT + ((1 - shares) * (height - _WAVE_HEIGHT - 1)).round().astype(int)
    right = _FREQUENCY_AXIS - _MARK - 3
    texts = [(right, place, f"{each:g}", "rm") for place, each in zip(places, shown, strict=True)]
    axis = write_texts(height, _FREQUENCY_AXIS, [*texts, (right, _WAVE_HEIGHT - 18, "kHz", "rm")])
    axis[places, -_MARK:] = INK
    return axis


def _time_axis(width: int) -> np.ndarray:
    """[height, width, 3] uint8, below a spectrogram."""
    times = np.arange(0, width / _PIXELS_PER_SECOND, _TIME_STEP)
    places = (times * _PIXELS_PER_SECOND).round().astype(int)
    # The first label begins at its mark, and a label that would end beyond the axis is left out.
    texts = [(0, _MARK + 3, "0 s", "la")]
    texts += [(place, _MARK + 3, f"{time:g} s", "ma") for place, time in zip(places, times, strict=True) if time]
    axis = write_texts(_TIME_AXIS, width, [each for each in texts if each[0] + _TIME_AXIS <= max(width, _TIME_AXIS)])
    axis[:_MARK, places[places < width]] = INK
    return axis
