"""Turns images into inputs of the image tokenizer, and reads them as training and the commands do."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature

from vpvae_hf.pixels import (
    center_crop,
    from_pixel_values,
    image_of,
    pixels_of_array,
    pixels_of_image,
    read_pixels,
    require_channels,
    scaled_for_crop,
    to_pixel_values,
)
from vpvae_hf.settings import plain, require, require_count, require_integer, require_name
from vpvae_hf.tensors import as_floating, as_tensor, require_finite

from .tokenizer import require_shape


class ImageSettings(TypedDict, total=False):
    """Settings that decide the size of an image; see `VPImageProcessor`."""

    shortest_side: int | None
    crop_size: int | None
    to_multiple: Literal["pad", "crop"]


class VPImageProcessor(BaseImageProcessor):
    """Makes `pixel_values` of images. By default it keeps the whole image, at its size, and pads it to whole codes.

    With `crop_size=S, shortest_side=N` it gives what `vpvae tokenize --size S --shortest-side N` encodes.
    `vpvae_hf.pixels` explains how orientation, depth and transparency are read.

    Args:
        channels: C, 1 for grey, 3 for RGB, 4 for RGBA.
        multiple: f, the tokenizer's downsampling factor.
        to_multiple: how the height and width of an image become multiples of f: "pad" repeats its last column and row
            at the right and bottom, "crop" keeps its middle.
        shortest_side: the image is scaled to it, in pixels; None scales only images that are smaller than `crop_size`.
        crop_size: side of the square in the middle that is kept, in pixels; None for the whole image.
    """

    model_input_names: ClassVar = ["pixel_values"]
    valid_kwargs = ImageSettings

    def __init__(
        self,
        channels: int = 3,
        multiple: int = 1,
        to_multiple: Literal["pad", "crop"] = "pad",
        shortest_side: int | None = None,
        crop_size: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.channels, self.multiple, self.to_multiple = plain(channels), plain(multiple), to_multiple
        self.shortest_side, self.crop_size = plain(shortest_side), plain(crop_size)
        require_integer("channels", self.channels, 1)
        require_integer("multiple", self.multiple, 1)
        self._settings({})

    def preprocess(
        self, images: Any, *, return_tensors: Literal["pt", "np"] | None = None, **settings: Any
    ) -> BatchFeature:
        """Make a batch.

        Args:
            images: a PIL image, a path or address of a file, or an array or tensor [H, W], [H, W, C] or [C, H, W] of
                type uint8, uint16, bool or floating point in 0..1; a list or column of such; or a batch [B, H, W, C]
                or [B, C, H, W].
            return_tensors: "pt" or "np" for a batch, whose images must get one size; None for lists.
            settings: `shortest_side`, `crop_size` and `to_multiple` in place of the processor's own.

        Returns:
            "pixel_values" [B, C, H, W] float32 in [-1, 1], and "original_sizes" [B, 2], the height and width that each
            image has within them, without padding; for `post_process`.

        Raises:
            ValueError: an image cannot be read, images of a batch differ in size, or `channels` is not 1, 3 or 4.
            TypeError: something is not an image.
        """
        require_channels(self.channels, self.channels)  # models of other tensors than images also have a processor
        settings = self._settings(settings)
        pixels = [self._sized(self._pixels(image), settings) for image in _listed(images)]
        padded = [self._padded(image, settings) for image in pixels]
        shapes = sorted({image.shape[:2] for image in padded})
        if return_tensors is not None and len(shapes) > 1:
            sizes = ", ".join(f"{height} x {width}" for height, width in shapes[:3])
            raise ValueError(
                f"images of one batch must have one size, got {sizes}; give shortest_side and crop_size to make them "
                "equal, process them one by one, or give no return_tensors for a list"
            )
        values = [to_pixel_values(image[None])[0].numpy() for image in padded]
        sizes = [image.shape[:2] for image in pixels]
        if return_tensors is not None:
            values, sizes = np.stack(values), np.array(sizes)
        return BatchFeature({"pixel_values": values, "original_sizes": sizes}, tensor_type=return_tensors)

    def post_process(
        self,
        pixel_values: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
        original_sizes: Tensor | Sequence[Sequence[int]] | None = None,
    ) -> list[Image.Image]:
        """PIL images of [B, C, H, W] in [-1, 1], such as `detokenize` gives, cut to [B, 2] heights and widths.

        A list may hold [C, H, W] of several sizes. Another shape, NaN or infinite values, and sizes that do not fit the
        images raise a ValueError.
        """
        listed = isinstance(pixel_values, list | tuple)
        images = [as_floating(each, "pixel values") for each in (pixel_values if listed else [pixel_values])]
        for image in images:
            require_shape(image, "pixel values", "CHW" if listed else "BCHW", "; give one image as x[None]")
            require_finite(image, "pixel values")
            require(1 <= image.shape[-3] <= 4, "the number of channels C", image.shape[-3], "1 to 4")
        images = [from_pixel_values(image) for image in (images if listed else images[0])]
        if original_sizes is not None:
            images = [
                image[:height, :width]
                for image, (height, width) in zip(images, _checked_sizes(original_sizes, images), strict=True)
            ]
        return [image_of(image) for image in images]

    def _settings(self, given: Mapping[str, Any]) -> ImageSettings:
        """The processor's settings, replaced by those that are given, and checked."""
        names = ImageSettings.__annotations__
        for name in given:
            require_name("argument", name, names)
        settings = {name: getattr(self, name) for name in names} | {name: plain(given[name]) for name in given}
        require(settings["to_multiple"] in ("pad", "crop"), "to_multiple", settings["to_multiple"], "'pad' or 'crop'")
        shortest, size = settings["shortest_side"], settings["crop_size"]
        for name in ("shortest_side", "crop_size"):
            require_count(name, settings[name])
        least = f"at least the size of a crop, {size}"
        require(None in (shortest, size) or shortest >= size, "shortest_side", shortest, least)
        return settings

    def _pixels(self, image: Any) -> np.ndarray:
        if isinstance(image, Image.Image):
            return pixels_of_image(image, self.channels)
        if isinstance(image, str | os.PathLike):
            return read_pixels({"bytes": None, "path": os.fspath(image)}, self.channels)
        if isinstance(image, np.ndarray | Tensor):
            return pixels_of_array(image, self.channels)
        raise TypeError(
            f"an image must be a PIL image, a path, an array or a tensor, got {type(image).__name__}; decode it first"
        )

    def _sized(self, pixels: np.ndarray, settings: ImageSettings) -> np.ndarray:
        size = settings["crop_size"]
        pixels = scaled_for_crop(pixels, size, settings["shortest_side"])
        pixels = pixels if size is None else center_crop(pixels, size, size)
        if settings["to_multiple"] != "crop":
            return pixels
        height, width = (side // self.multiple * self.multiple for side in pixels.shape[:2])
        if 0 in (height, width):
            raise ValueError(
                f"an image of {pixels.shape[0]} x {pixels.shape[1]} pixels has no crop whose sides are multiples of "
                f"{self.multiple}; give to_multiple='pad'"
            )
        return center_crop(pixels, height, width)

    def _padded(self, pixels: np.ndarray, settings: ImageSettings) -> np.ndarray:
        if settings["to_multiple"] != "pad":
            return pixels
        return np.pad(pixels, [*((0, -side % self.multiple) for side in pixels.shape[:2]), (0, 0)], mode="edge")


def _listed(images: Any) -> Sequence[Any]:
    """A list of single images."""
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        if not len(images):
            raise ValueError("there must be at least one image, got none")
        return list(images)
    are_several = isinstance(images, np.ndarray | Tensor) and (images.ndim == 4 or images.dtype == object)
    return list(images) if are_several else [images]


def _checked_sizes(sizes: Any, images: Sequence[np.ndarray]) -> list[list[int]]:
    """Heights and widths [B, 2], checked against images [H, W, C]."""
    sizes = as_tensor(sizes, "original_sizes")
    if sizes.is_floating_point() or sizes.shape != (len(images), 2):
        raise ValueError(
            f"original_sizes must be integers [{len(images)}, 2], the height and width of each image, got "
            f"{sizes.dtype} of shape {tuple(sizes.shape)}"
        )
    for (height, width), image in zip(sizes.tolist(), images, strict=True):
        if not (1 <= height <= image.shape[0] and 1 <= width <= image.shape[1]):
            raise ValueError(
                f"an original size of {height} x {width} does not lie within an image of {image.shape[0]} x "
                f"{image.shape[1]}; give the sizes that came with these images"
            )
    return sizes.tolist()
