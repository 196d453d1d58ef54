"""From generated codes to what people look at or listen to."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from torch import Tensor

_OUTPUT_TYPES = ("pil", "np", "pt", "codes")


@dataclass
class GeneratedImages(BaseOutput):
    """Generated images.

    Attributes:
        images: a list of PIL images, an array [B, H, W, C] or a tensor [B, C, H, W] in [0, 1]; None where only codes
            were wanted.
        codes: [B, h, w] or [B, h, w, G] int64.
    """

    images: Any
    codes: Tensor


@dataclass
class GeneratedAudio(BaseOutput):
    """Generated audio.

    Attributes:
        audios: an array [T] in [-1, 1] for each clip, which may differ in length; None where only codes were wanted.
        codes: [n] or [n, G] int64 for each clip.
        sampling_rate: Hz.
    """

    audios: list[np.ndarray] | None
    codes: list[Tensor]
    sampling_rate: int


def check_output_type(output_type: str, *, audio: bool = False) -> None:
    """Raise a ValueError for an output type that there is not."""
    valid = ("np", "codes") if audio else _OUTPUT_TYPES
    if output_type not in valid:
        raise ValueError(f"output_type must be one of {', '.join(valid)}, got {output_type!r}")


@torch.no_grad()
def decoded_images(vae, codes: Tensor, output_type: str) -> GeneratedImages:
    """Images of codes [B, h, w] or [B, h, w, G], as "pil", "np" or "pt"; none for "codes"."""
    if output_type == "codes":
        return GeneratedImages(images=None, codes=codes)
    sample = vae.decode(codes.to(vae.device)).sample
    images = VaeImageProcessor(vae_scale_factor=vae.downsample_factor).postprocess(sample.float(), output_type)
    return GeneratedImages(images=images, codes=codes)


@torch.no_grad()
def decoded_audio(codec, codes: list[Tensor], output_type: str) -> GeneratedAudio:
    """Audio of codes, [n] or [n, G] for each clip, as "np"; none for "codes"."""
    audios = None
    if output_type != "codes":
        audios = [codec.detokenize(clip[None].to(codec.device))[0, 0].float().cpu().numpy() for clip in codes]
    return GeneratedAudio(audios=audios, codes=codes, sampling_rate=codec.config.sampling_rate)
