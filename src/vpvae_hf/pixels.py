"""Turns image files, PIL images and arrays into pixels: the same for training, commands and the image processor.

Shapes: pixels [H, W, C] uint8, upright; C is 1 (grey), 3 (RGB) or 4 (RGBA); batches [B, C, H, W] float32 in [-1, 1].

What is read from an image:
- Its first frame or page is read, turned upright by its EXIF data. An image is also read if its metadata are damaged or
  large, or if a JPEG has all of its pixels but no end mark.
- Its depth is what the format declares, never guessed from the values: 1, 8, 12 and 16 bits span black to white, and so
  do floating-point values from 0 to 1. Signed and 32-bit integers, for which no black and white are declared, and
  floating-point values beyond 0 to 1 are refused.
- Images with transparency, in an alpha channel or of single colours, are laid over white unless C is 4. If C is 4,
  opaque images get an alpha of 255.
- Colour becomes grey by its luminance, 0.299 R + 0.587 G + 0.114 B; grey becomes colour with equal R, G and B.
"""

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import fsspec
import numpy as np
import torch
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from .image_metadata import has_all_scans, is_jpeg, without_metadata
from .unreadable import UnreadableFileError, unreadable

# Mode of Pillow for each number of channels.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Formats that Pillow reads as integers of 32 bits although they have 16.
_SIXTEEN_BIT_FORMATS = frozenset(("PNG", "PPM"))
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_NUMBERS, _WHITE_IS_ZERO = 258, 262, 339, 0
# By the value of _TIFF_NUMBERS.
_TIFF_KINDS = {1: "unsigned integers", 2: "signed integers", 3: "floating-point numbers"}


def require_channels(in_channels: int, out_channels: int) -> None:
    """Raise a ValueError if images cannot be read with a tokenizer's numbers of channels."""
    if in_channels != out_channels or in_channels not in MODES:
        raise ValueError(
            f"in_channels={in_channels} and out_channels={out_channels}: images are read with 1 channel (grey), 3 "
            "(RGB) or 4 (RGBA), and a tokenizer gives as many channels as it takes; set both to one of these"
        )


def read_pixels(file: Mapping[str, Any] | None, channels: int = 3, least_side: int | None = None) -> np.ndarray:
    """Pixels of a file, from its "bytes" or, if these are None, from "path", a path or an address that fsspec knows.

    Args:
        channels: C.
        least_side: a JPEG whose shorter side is at least two, four or eight times as long is decoded, much faster, to a
            half, a quarter or an eighth of its size; None decodes all of it.

    Raises:
        UnreadableFileError: there is no file, no decoder can read it, or its depth is not declared.
        ImportError: a library that the address needs is missing.
    """
    if file is None or (file["bytes"] is None and file["path"] is None):
        raise UnreadableFileError("there is no file")
    try:
        # A stream of image files on the hub gives only their addresses.
        opened = io.BytesIO(file["bytes"]) if file["bytes"] is not None else fsspec.open(file["path"], "rb")
        with opened as data:
            return _decoded(data, channels, least_side)
    except ImportError:
        raise
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise unreadable(file, error) from error


def pixels_of_image(image: Image.Image, channels: int = 3) -> np.ndarray:
    """Pixels of a PIL image; raise a ValueError if its depth is not declared."""
    with _pillow_without_warnings():
        image.load()
        turn = _TURNS.get(_orientation(image))
        image = _eight_bits(image)
        image = _with_channels(image, channels)
        pixels = np.asarray(image if turn is None else image.transpose(turn))
    return pixels.reshape(*pixels.shape[:2], channels)


def pixels_of_array(array: np.ndarray | Tensor, channels: int = 3) -> np.ndarray:
    """Pixels of an array or tensor [H, W], [H, W, C] or [C, H, W], of 1 to 4 channels (2: grey and alpha).

    It must be bool, uint8, uint16 (0..65535) or floating-point (0..1); other types, values and shapes raise a
    ValueError.
    """
    array = _array_of(array) if isinstance(array, Tensor) else array
    shape, most = array.shape, max(MODES)
    last, first = (array.ndim == 3 and 1 <= array.shape[axis] <= most for axis in (2, 0))
    if array.ndim not in (2, 3) or 0 in shape or (array.ndim == 3 and not (last or first)):
        raise ValueError(f"an image must be [H, W], [H, W, C] or [C, H, W] of 1 to {most} channels, got {list(shape)}")
    if last and first:
        raise ValueError(f"an image of shape {list(shape)} may be [H, W, C] or [C, H, W]; give a PIL image")
    array = _eight_bit_values(np.moveaxis(array, 0, -1) if first else array)
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return pixels_of_image(Image.fromarray(np.ascontiguousarray(array)), channels)


def scaled(pixels: np.ndarray, shortest_side: int, reducing_gap: float | None = None) -> np.ndarray:
    """Pixels whose shorter side has that length; the other keeps the proportions.

    Args:
        reducing_gap: first average whole blocks of pixels, which is faster, as long as the result stays this many times
            larger than the final size; None filters all pixels.
    """
    height, width = pixels.shape[:2]
    if min(height, width) == shortest_side:
        return pixels
    scale = shortest_side / min(height, width)
    size = (max(shortest_side, round(width * scale)), max(shortest_side, round(height * scale)))
    resized = np.asarray(image_of(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=reducing_gap))
    return resized.reshape(*resized.shape[:2], pixels.shape[2])


def scaled_for_crop(
    pixels: np.ndarray, size: int | None, shortest_side: int | None, reducing_gap: float | None = None
) -> np.ndarray:
    """Pixels `scaled` to `shortest_side`; if it is None, only images too small for a crop of `size` are, to `size`."""
    if shortest_side is None and (size is None or min(pixels.shape[:2]) >= size):
        return pixels
    return scaled(pixels, shortest_side or size, reducing_gap)


def center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of pixels that have at least that height and width."""
    top, left = ((have - want) // 2 for have, want in zip(pixels.shape, (height, width), strict=False))
    return pixels[top : top + height, left : left + width]


def to_pixel_values(images: np.ndarray | Tensor) -> Tensor:
    """[B, C, H, W] float32 in [-1, 1], contiguous, from [B, H, W, C] uint8; a tensor stays on its device.

    All devices give the same values to the bit.
    """
    images = images if isinstance(images, Tensor) else torch.from_numpy(images.copy())
    values = images.movedim(-1, 1).contiguous().float()
    # To divide by a Python number, CUDA multiplies by its reciprocal, which rounds differently.
    return values / values.new_full((), 127.5) - 1


def from_pixel_values(pixel_values: Tensor) -> np.ndarray:
    """[..., H, W, C] uint8 from [..., C, H, W] in [-1, 1]; values beyond are clipped."""
    values = (pixel_values.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return values.round().to(torch.uint8).movedim(-3, -1).numpy()


def image_of(pixels: np.ndarray) -> Image.Image:
    """A PIL image of pixels."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _array_of(tensor: Tensor) -> np.ndarray:
    known = tensor.dtype in (torch.float16, torch.float64) or not tensor.is_floating_point()
    return (tensor if known else tensor.float()).detach().cpu().numpy()  # numpy has no bfloat16


def _decoded(data: io.IOBase, channels: int, least_side: int | None) -> np.ndarray:
    try:
        return _decoded_by_pillow(data, channels, least_side)
    except Exception:  # decoders raise all kinds of errors for damaged files
        data.seek(0)
        with contextlib.suppress(Exception):
            file = without_metadata(data.read())
            decode = _decoded_jpeg if is_jpeg(file) else _decoded_by_pillow
            return decode(io.BytesIO(file), channels, least_side)
        raise


def _decoded_by_pillow(data: io.IOBase, channels: int, least_side: int | None) -> np.ndarray:
    try:
        with _pillow_without_warnings(), Image.open(data) as image:
            if least_side is not None:
                factor = min(image.size) / least_side
                image.draft(None, tuple(int(side / factor) for side in image.size))
            return pixels_of_image(image, channels)
    except UnidentifiedImageError:  # its message names an object in memory
        raise ValueError(_why_unidentified(data)) from None
    except ImportError as error:
        raise ValueError(f"Pillow lacks {error.name}, which this format needs") from error


def _why_unidentified(data: io.IOBase) -> str:
    try:
        data.seek(0)
        header = data.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(header + data.read(8) if header[2] == 43 else header)
        data.seek(tags.next)
        tags.load(data)
        bits, kind = tags[_TIFF_BITS], _TIFF_KINDS[tags.get(_TIFF_NUMBERS, (1,))[0]]
    except Exception:  # it is no TIFF
        return "it is no image, a damaged one, or of a format that Pillow does not read"
    return (
        f"it is a TIFF of {len(bits)} x {bits[0]} bits, {kind}, damaged or of a kind that Pillow does not read; "
        "convert it to unsigned integers of 8 or 16 bits"
    )


def _decoded_jpeg(data: io.BytesIO, channels: int, least_side: int | None) -> np.ndarray:
    """Pixels of a JPEG that may lack its end mark, but nothing else.

    A decoder reads missing pixels from whatever follows the data. So none is missing if no pixel depends on that.
    """
    file = data.getvalue()
    if b"\xff\xd9" in file[-64:] or not has_all_scans(file):
        return _decoded_by_pillow(data, channels, least_side)
    file = file.rstrip(b"\xff")
    restarts = b"".join(bytes([0xFF, 0xD0 + number]) + b"\x55" * 32 for number in range(8))
    pixels = [
        _decoded_by_pillow(io.BytesIO(file + more + b"\xff\xd9"), channels, least_side)
        for more in (b"", bytes(64), b"\x55" * 64, b"\xaa" * 64, restarts)
    ]
    if not all(np.array_equal(pixels[0], others) for others in pixels[1:]):
        raise ValueError("it is cut off")
    return pixels[0]


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata; the pixels are read already
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image, as grey with 8 bits if it has more."""
    tags = getattr(image, "tag_v2", {})
    if _TIFF_KINDS.get(tags.get(_TIFF_NUMBERS, (1,))[0]) == "signed integers":  # which Pillow treats like others
        raise ValueError(
            f"it has signed integers of {tags[_TIFF_BITS][0]} bits, which do not define black and white; convert "
            "it to unsigned integers of 8 or 16 bits"
        )
    if not image.mode.startswith(("I", "F")):
        return image
    if image.mode == "I" and image.format not in _SIXTEEN_BIT_FORMATS:
        raise ValueError("it has integers of 32 bits, which do not define white; convert it to 8 or 16 bits")
    values = np.asarray(image)
    if image.mode == "F":
        grey = _eight_bit_values(values)
    elif tags.get(_TIFF_BITS) == (12,):
        grey = (values.astype(np.int32) * 255 // 4095).astype(np.uint8)
    else:
        grey = (values // 257).astype(np.uint8)
    if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow applies this only to images of 8 bits
        grey = 255 - grey
    converted = Image.fromarray(grey)
    if "transparency" in image.info:
        converted.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return converted


def _eight_bit_values(values: np.ndarray) -> np.ndarray:
    """Values of another type as uint8."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # in either order of bytes
        return (values // 257).astype(np.uint8)
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(
            f"pixels of type {values.dtype} do not define white; convert them to uint8 (0..255), uint16 "
            "(0..65535) or floating point (0..1)"
        )
    if not ((values >= 0) & (values <= 1)).all():  # NaN fails, too
        raise ValueError(
            f"floating-point pixels must lie in 0..1, got {values.min():.4g}..{values.max():.4g}; scale them, or "
            "convert them to 8 or 16 bits"
        )
    return np.rint(values * 255).astype(np.uint8)


def _with_channels(image: Image.Image, channels: int) -> Image.Image:
    """An image of 8 bits in the mode for `channels` channels."""
    mode = MODES[channels]
    if image.mode == "La":  # which Pillow converts only to this
        image = image.convert("LA")
    if not image.has_transparency_data:
        # Colours that Pillow converts only to RGB.
        return image if image.mode == mode else image.convert("RGB").convert(mode)
    image = image.convert("RGBA")
    if channels == 4:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(mode)


class _PillowFilter:
    """The number of decoding threads, and the warning filter that they share: `catch_warnings` is not thread-safe."""

    lock = threading.Lock()
    users = 0
    entry = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@contextmanager
def _pillow_without_warnings() -> Iterator[None]:
    """A context in which Pillow does not warn of what it can still read, such as damaged metadata and large images."""
    with _PillowFilter.lock:
        _PillowFilter.users += 1
        if _PillowFilter.users == 1:
            warnings.filters.insert(0, _PillowFilter.entry)
    try:
        yield
    finally:
        with _PillowFilter.lock:
            _PillowFilter.users -= 1
            if _PillowFilter.users == 0 and _PillowFilter.entry in warnings.filters:
                warnings.filters.remove(_PillowFilter.entry)
