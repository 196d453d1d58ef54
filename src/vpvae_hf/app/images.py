"""Pictures on the page.

Shapes: K codes, N of them on a sheet.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vpvae_hf.metrics.codecs import WebP, nearest_in_size
from vpvae_hf.metrics.pictures import as_rgb
from vpvae_hf.models.tokenizer import Tokenizer
from vpvae_hf.pixels import from_pixel_values, read_pixels, scaled

from .bench import Bench, Progress, Row, Source, Work, quiet
from .charts import Chart, sheet_of_cells, sheet_shape

# Codes of pictures with up to this many pixels may be loaded; pictures of cameras have about as many.
_MOST_PIXELS = 25_000_000
# A sheet shows up to this many codes; if the codebook has more, those that the picture uses most.
_MOST_ON_SHEET = 1024
# Side, in codes, of the small pictures that consist of one code, and how many are decoded at once.
_FILLED, _BATCH = 4, 64
# The sheet's largest side in pixels, and how much of its cell's side a code takes that the picture does not use.
_SHEET, _UNUSED = 768, 0.4


class ImageBench(Bench):
    """An image tokenizer."""

    kind = "image"

    def __init__(self, model: Tokenizer, name: str, revision: str | None = None):
        super().__init__(model, name, revision)
        self._known: dict[int, Tensor] = {}  # the colours of codes, by K

    def read(self, file: str, limit: int) -> Source:
        """A picture whose longer side is scaled down to `limit` pixels."""
        pixels = read_pixels({"bytes": None, "path": file}, self.model.config.in_channels)
        height, width = pixels.shape[:2]
        told = f"{width:,} x {height:,} pixels"
        if max(height, width) > limit:
            pixels = scaled(pixels, max(1, round(min(height, width) * limit / max(height, width))), reducing_gap=3)
            told += f", scaled down to {pixels.shape[1]} x {pixels.shape[0]} (see “Longer side”)"
        batch = self.model.preprocessor()(pixels, return_tensors="pt")
        size = _size(*batch.original_sizes[0].tolist())
        return Source(Path(file).stem, batch.pixel_values, size, told + ".")

    def example(self) -> Source:
        side = 8 * self.model.downsample_factor
        return Source("example", torch.zeros(1, self.model.config.in_channels, side, side), _size(side, side), "")

    def within_limits(self, size: Mapping[str, int]) -> str | None:
        too_large = size["height"] * size["width"] > _MOST_PIXELS
        return f"this page decodes pictures of up to {_MOST_PIXELS:,} pixels" if too_large else None

    def places(self, work: Work) -> Tensor:
        height, width = work.codes.shape[:2]
        return torch.arange(height * width).view(height, width)

    def rows(self, work: Work) -> list[Row]:
        codes = Row(
            f"{work.codes.numel():,} codes, K = {work.codebook_size:,}",
            self.stored_bytes(work),
            self.quality(work, work.decoded),
        )
        original, webp, png = self.modality.cut(work.source.signal, work.size), WebP(effort=4), io.BytesIO()
        quality, file = nearest_in_size(webp, original[0], codes.stored)
        decoded = webp.decode(file, original[0])[None]
        self.shown(original)[0].save(png, "png", compress_level=9)
        return [
            codes,
            Row(f"WebP, quality {quality} of 100", len(file), self.quality(work, decoded), self.shown(decoded)[0]),
            Row("PNG", len(png.getvalue()), {}),
        ]

    def shown(self, *signals: Tensor) -> list[Image.Image]:
        """PIL images of pictures [1, C, H, W]."""
        return [image for signal in signals for image in self.model.preprocessor().post_process(signal)]

    def sheet(self, work: Work, progress: Progress = quiet) -> Chart | None:
        """The colour that each code alone gives a picture, sorted by lightness and hue; codes in use are large."""
        if not self.has_single_codes:
            return None
        counts = work.codes.flatten().bincount(minlength=work.codebook_size)
        shown = counts.argsort(descending=True, stable=True)[:_MOST_ON_SHEET]
        colours = self._colours(shown, work.codebook_size, progress)
        rows, columns = sheet_shape(len(shown))
        order = _by_lightness_and_hue(colours, columns)
        values = torch.full((rows * columns,), -1)
        values[: len(shown)] = shown[order]
        shades = from_pixel_values(colours[order].T[:, None])[0]  # [N, 3]
        cell = _SHEET // columns
        cells = np.full((rows * columns, cell, cell, 3), 255, dtype=np.uint8)
        cells[: len(shown)] = shades[:, None, None]
        edge = round(cell * (1 - _UNUSED) / 2)
        inner = np.zeros((cell, cell, 1), dtype=bool)
        inner[edge : cell - edge, edge : cell - edge] = True
        unused = np.flatnonzero((counts[shown[order]] == 0).numpy())
        cells[unused] = np.where(inner, cells[unused], 255)
        return sheet_of_cells(cells.reshape(rows, columns, cell, cell, 3), values.view(rows, columns))

    def _colours(self, codes: Tensor, codebook_size: int, progress: Progress) -> Tensor:
        """The colours [N, 3] in [-1, 1] of pictures that each consist of one of the codes [N]."""
        with self._lock, torch.no_grad():
            self.model.select_codebook(codebook_size)
            known = self._known.setdefault(codebook_size, torch.full((codebook_size, 3), torch.nan))
            missing = codes[known[codes, 0].isnan()]
            if len(missing):
                filled = self._fills(missing, (_FILLED, _FILLED), _BATCH, progress)
                known[missing] = torch.cat([_middle(as_rgb(each)) for each in filled])
            return known[codes]


def _size(height: int, width: int) -> dict[str, int]:
    return {"height": height, "width": width}


def _middle(pictures: Tensor) -> Tensor:
    """The mean colour [N, 3] of the middle of pictures [N, 3, S, S]."""
    edge = pictures.shape[-1] // 4
    return pictures[..., edge:-edge, edge:-edge].mean(dim=(-2, -1))


def _by_lightness_and_hue(colours: Tensor, columns: int) -> Tensor:
    """The order [N] of colours [N, 3] in [-1, 1] by lightness, and within each row of a sheet by hue."""
    lightness = colours @ torch.tensor([0.299, 0.587, 0.114])
    hue = torch.atan2(3**0.5 * (colours[:, 1] - colours[:, 2]), 2 * colours[:, 0] - colours[:, 1] - colours[:, 2])
    order = lightness.argsort(descending=True)
    return torch.cat([row[hue[row].argsort()] for row in order.split(columns)])
