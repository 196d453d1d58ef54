"""Training tokenizers of images."""

from collections.abc import Mapping
from functools import partial

import numpy as np
from torch import Tensor

from vpvae_hf.data import ImageCrop, Transform, open_images
from vpvae_hf.losses import IMAGE_LOSSES, Loss, build_losses
from vpvae_hf.metric_labels import describe_metrics
from vpvae_hf.metrics import MetricFn, ReconstructionQuality, image_grid, image_quality
from vpvae_hf.models import AutoencoderVP

from .config import AdversarialConfig, ImageTrainingConfig
from .modality import Modality, places

_SUMMARY = ("psnr", "ssim", "code_usage")


class ImageModality(Modality):
    """Crops of images for an `AutoencoderVP`."""

    examples = measured = "images"
    library = "diffusers"
    unquantized = ("psnr",)
    open = staticmethod(open_images)

    def _new_model(self, config: ImageTrainingConfig) -> AutoencoderVP:
        quantizer = dict(config.quantizer) or None
        start = config.model.from_autoencoder_kl
        if start is not None:
            return AutoencoderVP.from_autoencoder_kl(start, quantizer=quantizer, **places(config.model))
        size = config.data.validation_size or config.data.size
        return AutoencoderVP(**{"sample_size": size, **config.model.architecture}, quantizer=quantizer)

    def load(self, name: str, **places: str) -> AutoencoderVP:
        return AutoencoderVP.from_pretrained(name, **places)

    def losses(self, config: ImageTrainingConfig, model: AutoencoderVP) -> Mapping[str, Loss]:
        return build_losses(config.loss_weights, IMAGE_LOSSES)

    def adversarial(self, config: ImageTrainingConfig) -> AdversarialConfig | None:
        return config.adversarial if config.adversarial.weight else None

    def training_cut(self, config: ImageTrainingConfig, model: AutoencoderVP) -> Transform:
        data = config.data
        return ImageCrop(size=data.size, shortest_side=data.shortest_side, crop=data.crop, flip=data.flip)

    def held_out_cut(self, config: ImageTrainingConfig, model: AutoencoderVP) -> Transform:
        side, size = config.data.shortest_side, config.data.validation_size or config.data.size
        return ImageCrop(size=size, shortest_side=None if side is None else max(side, size))

    def shown_cut(self, config: ImageTrainingConfig, model: AutoencoderVP) -> Transform:
        return self.held_out_cut(config, model)

    def held_out_batch_size(self, config: ImageTrainingConfig) -> int:
        return config.train_batch_size

    def varies(self, config: ImageTrainingConfig) -> bool:
        return config.data.crop == "random"

    def quality(self, model: AutoencoderVP, config: ImageTrainingConfig, *, final: bool) -> MetricFn:
        return partial(image_quality, lpips=final and config.losses.get("lpips", 0) > 0)

    def summary(self, quality: ReconstructionQuality) -> str:
        return f"{quality.items} validation images: {describe_metrics(quality.metrics, _SUMMARY)}"

    def factor(self, model: AutoencoderVP) -> str:
        return f"factor {model.downsample_factor}"

    def picture(self, rows: list[Tensor], model: AutoencoderVP) -> np.ndarray:
        return image_grid(rows)
