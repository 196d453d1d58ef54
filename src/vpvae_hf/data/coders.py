"""How a tokenizer turns files of one kind into rows of codes.

Shapes: images: S the side of a crop in pixels, f the tokenizer's factor, h = w = S / f. Audio: T samples of a clip,
N = ceil(T / hop) codes. K codes in all.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .audio import AudioClip
from .images import ImageCrop
from .sources import Transform


def code_dtype(codebook_size: int) -> str:
    """The smallest of the integer types of files that holds the codes 0..K-1."""
    if codebook_size <= 1 << 8:
        return "uint8"
    return "uint16" if codebook_size <= 1 << 16 else "int32"


class Coder(ABC):
    """Makes the columns of codes.

    Attributes:
        cut: what of a file is encoded.
        batches_at_once: for which samples are decoded before they are encoded.
    """

    cut: Transform
    batches_at_once: int

    @abstractmethod
    def features(self) -> dict[str, Any]:
        """The columns it makes, as `datasets` describes them."""

    @abstractmethod
    def columns(self, samples: list[Tensor], batch_size: int) -> list[dict[str, Any]]:
        """The columns' values for each of some samples of the cut, `batch_size` of which are encoded together."""


class ImageCoder(Coder):
    """Centre crops of images; makes "codes" [h, w], or [h, w, G] where a token has several.

    Args:
        model: a fitted tokenizer, such as `AutoencoderVP`, in eval mode.
        size: S.
        shortest_side: images are scaled to it.

    Raises:
        ValueError: a size that is no multiple of f, or a shortest side below the size.
    """

    batches_at_once = 1

    def __init__(self, model, *, size: int, shortest_side: int):
        factor = model.downsample_factor
        if size < 1 or size % factor:
            near = max(factor, size // factor * factor)
            raise ValueError(f"size must be a multiple of the tokenizer's factor {factor}, got {size}; try {near}")
        self.cut = ImageCrop(size=size, shortest_side=shortest_side)
        self._model, self._side = model, size // factor
        self._dtype = code_dtype(model.quantize.codebook_size)

    def features(self) -> dict[str, Any]:
        from datasets import Array2D, Array3D

        grid, groups = (self._side, self._side), self._model.quantize.code_groups
        return {"codes": Array2D(grid, self._dtype) if groups == 1 else Array3D((*grid, groups), self._dtype)}

    def columns(self, samples: list[Tensor], batch_size: int) -> list[dict[str, Any]]:
        rows = []
        for start in range(0, len(samples), batch_size):
            pixel_values = self.cut.model_input(self.cut.collate(samples[start : start + batch_size]))
            codes = self._model.tokenize(pixel_values.to(self._model.device)).cpu().numpy()
            rows += [{"codes": image_codes} for image_codes in codes.astype(self._dtype)]
        return rows


class AudioCoder(Coder):
    """Whole clips; makes "codes" [N] and "num_samples", T at the tokenizer's sampling rate, to cut decoded audio to.

    Where a token has several codes they are [G, N].

    Clips shorter than one hop cannot be encoded and count as unreadable.

    Args:
        model: a fitted tokenizer, such as `VPCodecModel`, in eval mode.
        resample: files of another sampling rate than the tokenizer's; otherwise they are an error.
        downmix: several channels to their mean; otherwise they are an error.
    """

    # Clips of like lengths are batched: sorted among so many, little of a batch is padding.
    batches_at_once = 4

    def __init__(self, model, *, resample: bool = False, downmix: bool = False):
        config = model.config
        self.cut = AudioClip(
            sampling_rate=config.sampling_rate, resample=resample, downmix=downmix, shortest=config.hop_length
        )
        self._model, self._hop_length = model, config.hop_length
        self._dtype = code_dtype(model.quantize.codebook_size)

    def features(self) -> dict[str, Any]:
        from datasets import List, Value

        sequence = List(Value(self._dtype))
        codes = sequence if self._model.quantize.code_groups == 1 else List(sequence)
        return {"codes": codes, "num_samples": Value("int64")}

    def columns(self, samples: list[Tensor], batch_size: int) -> list[dict[str, Any]]:
        by_length = sorted(range(len(samples)), key=lambda place: len(samples[place]))
        rows: dict[int, dict[str, Any]] = {}
        for start in range(0, len(samples), batch_size):
            places = by_length[start : start + batch_size]
            codes = self._codes([samples[place] for place in places])
            for place, clip_codes in zip(places, codes, strict=True):
                length = len(samples[place])
                rows[place] = {"codes": clip_codes[..., : -(-length // self._hop_length)], "num_samples": length}
        return [rows[place] for place in range(len(samples))]

    @torch.no_grad()
    def _codes(self, clips: list[Tensor]):
        """[B, N] or [B, G, N] of the longest."""
        audio = self.cut.model_input(pad_sequence(clips, batch_first=True))
        lengths = torch.tensor([len(clip) for clip in clips])
        mask = (torch.arange(audio.shape[-1]) < lengths[:, None]).long()
        device = self._model.device
        codes = self._model.encode(audio.to(device), mask.to(device)).audio_codes
        codes = codes[:, 0] if self._model.quantize.code_groups == 1 else codes
        return codes.cpu().numpy().astype(self._dtype)
