"""Images for an `AutoencoderVP`.

Shapes: S the side of a crop in pixels, f the tokenizer's downsampling factor, h = w = S / f.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vpvae_hf.data import ImageCrop, code_dtype, open_images, readable_suffixes
from vpvae_hf.files import write_atomically
from vpvae_hf.losses import (
    EFFICIENTNET,
    Loss,
    PatchDiscriminator,
    build_losses,
    image_losses,
    pooled_features,
    require_feature_images,
    require_lpips_channels,
)
from vpvae_hf.metric_labels import metric_label
from vpvae_hf.metrics import FeatureFn, MetricFn, image_grid, image_quality
from vpvae_hf.metrics.codecs import WebP
from vpvae_hf.metrics.pictures import SHOWN_SIDE, as_rgb, code_colours
from vpvae_hf.models import AutoencoderVP
from vpvae_hf.pixels import pixels_of_array, pixels_of_image, require_channels
from vpvae_hf.settings import require, require_count
from vpvae_hf.unreadable import unreadable

from .base import Modality
from .config import AdversarialConfig, DataConfig, ModelConfig, TrainingConfig, loss_help, option

# Side of a tile in pixels; a person's own larger pictures are processed in tiles.
_TILE = 1024


@dataclass
class ImageModelConfig(ModelConfig):
    """Which image tokenizer to train."""

    from_autoencoder_kl: str | None = option(None, "folder or hub id of a diffusers AutoencoderKL to start from")
    from_vq_model: str | None = option(None, "folder or hub id of a diffusers VQModel to start from")

    def __post_init__(self):
        starts = ("pretrained", "from_autoencoder_kl", "from_vq_model")
        given = [f"model.{name}" for name in starts if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} name several starts; give one of them")
        if self.start is None:
            require_channels(self.architecture.get("in_channels", 3), self.architecture.get("out_channels", 3))

    @property
    def start(self) -> str | None:
        return self.pretrained or self.from_autoencoder_kl or self.from_vq_model


@dataclass
class ImageDataConfig(DataConfig):
    """Which images to train and validate on."""

    size: int = option(256, "side of a training crop, pixels")
    shortest_side: int | None = option(256, "length that each image's shortest side is scaled to; null: no scaling")
    crop: Literal["random", "center"] = option("center", "where crops are taken")
    flip: bool = option(False, "mirror half of the images")
    draft: bool = option(False, "decode large training images at a reduced size: faster, slightly different pixels")
    validation_size: int | None = option(None, "side of a validation crop, pixels; null: as in training")

    def __post_init__(self):
        super().__post_init__()
        require(self.size >= 1, "data.size", self.size, "at least 1")
        require_count("data.validation_size", self.validation_size)


@dataclass
class ImageAdversarialConfig(AdversarialConfig):
    """A patch discriminator."""

    channels: int = option(64, "width of the discriminator's first layer")
    layers: int = option(3, "strided layers of the discriminator")


@dataclass
class ImageTrainingConfig(TrainingConfig):
    """A training run of an image tokenizer."""

    model: ImageModelConfig = field(default_factory=ImageModelConfig)
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    losses: dict[str, float] = option({}, loss_help(image_losses()))
    feature_network: str = option(
        EFFICIENTNET, "network of the loss features: the default, or folder or hub id of a backbone of transformers"
    )
    adversarial: ImageAdversarialConfig = field(default_factory=ImageAdversarialConfig)
    channels_last: bool = option(
        False, "train with weights in the layout [N, H, W, C]; on a GPU try whether it is faster with torch_compile"
    )


class ImageModality(Modality):
    """Crops of images."""

    model_class, config_class = AutoencoderVP, ImageTrainingConfig
    train_items = "images"
    headline_metrics = unquantized_metrics = ("psnr",)
    extra_metrics = ("lpips", "features", "frechet")
    takes_validation_share = True
    rate_unit = "bits per pixel"
    written_suffixes = (".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
    _open = staticmethod(open_images)

    def new_model(self, config: ImageTrainingConfig) -> AutoencoderVP:
        quantizer = dict(config.quantizer) or None
        if config.model.start is not None:
            kl = config.model.from_autoencoder_kl is not None
            begin = AutoencoderVP.from_autoencoder_kl if kl else AutoencoderVP.from_vq_model
            return begin(config.model.start, quantizer=quantizer, **config.model.hub_location)
        size = config.data.validation_size or config.data.size
        return AutoencoderVP(**{"sample_size": size, **config.model.architecture}, quantizer=quantizer)

    def build_model(self, config: ImageTrainingConfig) -> AutoencoderVP:
        model = super().build_model(config)
        return model.to(memory_format=torch.channels_last) if config.channels_last else model

    def losses(self, config: ImageTrainingConfig, model: AutoencoderVP) -> Mapping[str, Loss]:
        if config.loss_weights.get("lpips"):
            require_lpips_channels(model.config.out_channels)
        if config.loss_weights.get("features"):  # also measured at the end
            side = min(config.data.size, config.data.validation_size or config.data.size)
            require_feature_images(model.config.out_channels, side)
        return build_losses(config.loss_weights, image_losses(feature_network=config.feature_network))

    def adversarial(
        self, config: ImageTrainingConfig, model: AutoencoderVP
    ) -> tuple[ImageAdversarialConfig, nn.Module] | None:
        settings = config.adversarial
        if not settings.weight:
            return None
        return settings, PatchDiscriminator(model.config.out_channels, settings.channels, settings.layers)

    def data_config(self, model: AutoencoderVP, **given: Any) -> ImageDataConfig:
        """By default crops of the model's `sample_size`, from images whose shortest side is scaled to that."""
        size = model.config.sample_size if given.get("size") is None else given["size"]
        factor = model.downsample_factor
        if size < 1 or size % factor:
            near = max(factor, size // factor * factor)
            raise ValueError(f"size must be a multiple of the tokenizer's factor {factor}, got {size}; try {near}")
        side = size if given.get("shortest_side") is None else given["shortest_side"]
        return super().data_config(model, **{**given, "size": size, "shortest_side": side, "crop": "random"})

    def train_transform(self, data: ImageDataConfig, model: AutoencoderVP) -> ImageCrop:
        channels = _channels(model)
        how = {"crop": data.crop, "flip": data.flip, "draft": data.draft}
        return ImageCrop(size=data.size, shortest_side=data.shortest_side, channels=channels, **how)

    def fit_transform(self, data: ImageDataConfig, model: AutoencoderVP) -> ImageCrop:
        """Crops as large as the images that are measured, since latents near the edge of a small crop differ."""
        size = data.validation_size or data.size
        side = None if data.shortest_side is None else max(data.shortest_side, size)
        return self.train_transform(replace(data, size=size, shortest_side=side), model)

    def eval_transform(self, data: ImageDataConfig, model: AutoencoderVP) -> ImageCrop:
        side, size, channels = data.shortest_side, data.validation_size, _channels(model)
        if size is None:
            return ImageCrop(size=data.size, shortest_side=side, channels=channels)
        return ImageCrop(size=size, shortest_side=None if side is None else max(side, size), channels=channels)

    def is_random(self, data: ImageDataConfig) -> bool:
        return data.crop == "random"

    def metric_fn(self, model: AutoencoderVP, extra: Collection[str] = ()) -> MetricFn:
        """With "lpips", and "features/NETWORK" for the distance of a network's features."""
        if "lpips" in extra:
            require_lpips_channels(model.config.out_channels)
        networks = [name.partition("/")[2] for name in extra if name.startswith("features/")]
        return partial(image_quality, lpips="lpips" in extra, feature_networks=networks)

    def set_features(self, extra: Collection[str]) -> dict[str, FeatureFn]:
        """Features for the metrics "frechet/NETWORK"."""
        networks = [name.partition("/")[2] for name in extra if name.startswith("frechet/")]
        return {f"frechet/{PurePath(each).name}": partial(pooled_features, network=each) for each in networks}

    def codec(self, model: AutoencoderVP) -> WebP:
        return WebP()

    def lowered_metrics(self, config: ImageTrainingConfig) -> list[str]:
        lowered = super().lowered_metrics(config)
        return [f"{name}/{config.feature_network}" if name == "features" else name for name in lowered]

    def code_features(self, data: ImageDataConfig, model: AutoencoderVP) -> dict[str, Any]:
        """ "codes" [h, w], or [h, w, G] if a token has several."""
        from datasets import Array2D, Array3D

        side, groups = data.size // model.downsample_factor, model.quantize.code_groups
        dtype = code_dtype(model.quantize.codebook_size)
        return {"codes": Array2D((side, side), dtype) if groups == 1 else Array3D((side, side, groups), dtype)}

    def item_of(self, value: Any, transform: ImageCrop) -> Tensor:
        """Also takes PIL images and arrays [H, W, C]."""
        if not isinstance(value, Image.Image | np.ndarray):
            return super().item_of(value, transform)
        is_array = isinstance(value, np.ndarray)
        if is_array and value.dtype.kind not in "buf":  # as in all of the column, so this is not a damaged file
            raise TypeError(
                f"an array of type {value.dtype} is no image; give uint8 (0..255), uint16 (0..65535) or floating point "
                "(0..1), or the column as files: cast it to Image(decode=False)"
            )
        pixels_of = pixels_of_array if is_array else pixels_of_image
        try:
            pixels = pixels_of(value, transform.channels)
        except (OSError, ValueError) as error:
            raise unreadable({"path": getattr(value, "filename", None)}, error) from error
        return transform.cut(pixels, np.random.default_rng(0))

    def code_settings(self, data: ImageDataConfig, model: AutoencoderVP) -> dict[str, Any]:
        crop = {"size": data.size, "shortest_side": data.shortest_side}
        return {"downsample_factor": model.downsample_factor, **crop}

    def resolution(self, model: AutoencoderVP) -> str:
        side, codes = model.downsample_factor, model.quantize.code_groups
        return f"{codes} code{'s' * (codes > 1)} per {side} x {side} pixels"

    def picture(
        self,
        rows: list[Tensor],
        model: AutoencoderVP,
        labels: Sequence[str] = (),
        captions: Sequence[Sequence[str]] = (),
    ) -> np.ndarray:
        """Small images are enlarged."""
        return image_grid(rows, labels, captions, shown_side=SHOWN_SIDE)

    def quality_captions(self, reconstruction: Tensor, original: Tensor, model: AutoencoderVP) -> list[str]:
        label = metric_label("psnr")
        return [f"{label.label} {label.format(each)}" for each in image_quality(reconstruction, original)["psnr"]]

    def rate(self, model: AutoencoderVP, bits: float) -> float:
        return bits / model.downsample_factor**2

    def read_suffixes(self) -> frozenset[str]:
        return readable_suffixes("image")

    def read_file(self, file: Path, model: AutoencoderVP) -> tuple[Tensor, dict[str, int]]:
        batch = model.preprocessor()(file, return_tensors="pt")
        height, width = batch.original_sizes[0].tolist()
        return batch.pixel_values, {"height": height, "width": width}

    def cut(self, signal: Tensor, size: Mapping[str, int]) -> Tensor:
        return signal[..., : size["height"], : size["width"]]

    def write_file(self, path: Path, signal: Tensor, model: AutoencoderVP) -> None:
        (image,) = model.preprocessor().post_process(signal)
        with write_atomically(path) as aside:
            image.save(aside, format=Image.registered_extensions()[path.suffix.lower()])

    def described(self, size: Mapping[str, int], bits: float) -> tuple[str, str]:
        rate = bits / (size["height"] * size["width"])
        return f"{size['width']} x {size['height']} pixels", f"{rate:.3f} bits per pixel"

    def limit_memory(self, model: AutoencoderVP) -> None:
        model.use_tiling, model.tile_sample_min_size = True, _TILE

    def parts(self, size: Mapping[str, int], model: AutoencoderVP) -> int:
        return model.tile_count(size["height"], size["width"])

    def compared(self, original: Tensor, decoded: Tensor, codes: Tensor, model: AutoencoderVP) -> np.ndarray:
        """Side by side; a code's colour is the first three dimensions of its latent, so that like codes look alike."""
        colours = code_colours(model.quantize.decode(codes)).movedim(-1, 1) * 2 - 1
        factor = model.downsample_factor
        enlarged = colours.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
        enlarged = enlarged[..., : original.shape[-2], : original.shape[-1]]
        shown = torch.cat([as_rgb(original), as_rgb(decoded), enlarged])
        return image_grid([shown], captions=[["original", "from codes", "codes"]])


def _channels(model: AutoencoderVP) -> int:
    """The number of channels that its images are read with; a ValueError if images cannot have that many."""
    require_channels(model.config.in_channels, model.config.out_channels)
    return model.config.in_channels
