"""Sheets: rows of tiles, pictures [height, width, 3] uint8 of one shape, with a label before each row and a caption
below each tile.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK = (40, 40, 40)
# Height of letters: this share of a tile's shorter side, but no fewer pixels than that.
_TEXT_SHARE, _LEAST_TEXT = 0.1, 14
_LINE = 1.4  # height of a line of text, in heights of letters


def sheet(
    rows: Sequence[Sequence[np.ndarray]],
    gap: int,
    labels: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    left: np.ndarray | None = None,
    below: np.ndarray | None = None,
) -> np.ndarray:
    """A picture [height, width, 3] uint8 of rows of tiles, on white.

    Args:
        gap: pixels between tiles.
        labels: what to write before each row; empty for nothing.
        captions: for each row, what to write below each of its tiles, empty for nothing; empty as a whole for none.
        left: an axis [height, any, 3] before the first tile of each row.
        below: an axis [any, width, 3] below each tile of the last row.
    """
    height, width, _ = rows[0][0].shape
    size = max(_LEAST_TEXT, round(_TEXT_SHARE * min(height, width)))
    widest = max([width, *(_text_width(text, size) for texts in captions for text in texts)])
    bands = [[_joined([_padded(tile, width=widest) for tile in row], 1, gap)] for row in rows]
    if below is not None:
        bands[-1].append(_joined([_padded(below, width=widest)] * len(rows[-1]), 1, gap))
    for band, texts in zip(bands, captions, strict=bool(captions)):
        if texts:
            band.append(_joined([_caption(text, widest, texts, size) for text in texts], 1, gap))
    whole = [np.concatenate(band) for band in bands]
    if left is not None:
        whole = [_beside(left, band) for band in whole]
    if labels:
        column = max(_text_width(label, size) for label in labels) + size
        whole = [_beside(_label(text, height, column, size), band) for text, band in zip(labels, whole, strict=True)]
    return _joined(whole, 0, gap)


def write_texts(
    height: int, width: int, texts: Iterable[tuple[float, float, str, str]], size: int = _LEAST_TEXT
) -> np.ndarray:
    """A white strip [height, width, 3] uint8 with texts, each at its x and y, with its anchor as Pillow names these."""
    image = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for x, y, text, anchor in texts:
        draw.text((x, y), text, fill=INK, font=font, anchor=anchor, align="center")
    return np.array(image)


def _caption(text: str, width: int, row: Sequence[str], size: int) -> np.ndarray:
    """[height, width, 3]; all captions of a row are as high as its longest one."""
    height = round(_LINE * size * max(each.count("\n") + 1 for each in row))
    return write_texts(height, width, [(width / 2, size * 0.15, text, "ma")], size)


def _label(text: str, height: int, width: int, size: int) -> np.ndarray:
    """[height, width, 3]."""
    return write_texts(height, width, [(width / 2, height / 2, text, "mm")], size)


def _text_width(text: str, size: int) -> int:
    font = ImageFont.load_default(size)
    return round(max(font.getlength(line) for line in text.split("\n")))


def _beside(part: np.ndarray, band: np.ndarray) -> np.ndarray:
    """A part [height, width, 3] before a band that is at least as high."""
    return np.concatenate([_padded(part, height=len(band)), band], axis=1)


def _padded(picture: np.ndarray, height: int = 0, width: int = 0) -> np.ndarray:
    """A picture [height, width, 3], with white added below it and to its right, up to a size."""
    missing = [(0, max(0, want - have)) for want, have in zip((height, width), picture.shape, strict=False)]
    return np.pad(picture, [*missing, (0, 0)], constant_values=255)


def _joined(pictures: Sequence[np.ndarray], axis: int, gap: int) -> np.ndarray:
    """Pictures side by side or one above the other, with white gaps; they may differ in size along that axis."""
    shape = list(pictures[0].shape)
    shape[axis] = gap
    white = np.full(shape, 255, dtype=np.uint8)
    return np.concatenate([part for picture in pictures for part in (white, picture)][1:], axis=axis)
