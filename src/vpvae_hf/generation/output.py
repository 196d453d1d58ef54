"""Generated images and clips as files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from vpvae_hf.files import write_atomically
from vpvae_hf.metrics import image_grid
from vpvae_hf.metrics.pictures import SHOWN_SIDE
from vpvae_hf.settings import installed_with

_PAUSE_S = 0.5  # between clips


def write_generated(
    signals: Sequence[np.ndarray],
    folder: Path,
    *,
    sampling_rate: int | None = None,
    columns: int | None = None,
    each: bool = False,
) -> list[Path]:
    """Write images on one sheet, samples.png, or clips one after the other, samples.flac.

    Returns the paths of all files written, that one last. Small images are enlarged on the sheet, and only there.

    Args:
        signals: B images [H, W, C] in [0, 1], or clips [T] in [-1, 1].
        sampling_rate: that of clips, Hz; None for images.
        columns: images per row of the sheet; None for all in one row.
        each: also write each image or clip to its own file: 000.png, 001.png, ...
    """
    numbered = {f"{number:03d}": signal for number, signal in enumerate(signals)} if each else {}
    if sampling_rate is not None:
        pause = np.zeros(int(sampling_rate * _PAUSE_S), np.float32)
        joined = np.concatenate([part for clip in signals for part in (clip, pause)])
        return [_write_clip(folder, *item, sampling_rate) for item in (numbered | {"samples": joined}).items()]
    written = [_write_image(folder, name, VaeImageProcessor.numpy_to_pil(image)[0]) for name, image in numbered.items()]
    rows = _rows(np.asarray(signals), columns or len(signals))
    sheet = Image.fromarray(image_grid(rows, shown_side=SHOWN_SIDE))
    return [*written, _write_image(folder, "samples", sheet)]


def _rows(images: np.ndarray, columns: int) -> list[Tensor]:
    """Rows of images [columns, C, H, W] in [-1, 1], the last one filled up with white."""
    missing = -len(images) % columns
    filled = np.concatenate([images, np.ones((missing, *images.shape[1:]), images.dtype)])
    return list((torch.from_numpy(filled).movedim(-1, 1) * 2 - 1).split(columns))


def _write_image(folder: Path, name: str, image: Image.Image) -> Path:
    path = folder / f"{name}.png"
    with write_atomically(path) as aside:
        image.save(aside, format="png")
    return path


def _write_clip(folder: Path, name: str, clip: np.ndarray, sampling_rate: int) -> Path:
    with installed_with("'vpvae_hf[audio]'"):
        import soundfile
    path = folder / f"{name}.flac"
    with write_atomically(path) as aside:
        soundfile.write(aside, clip.clip(-1, 1), sampling_rate, format="FLAC")
    return path
