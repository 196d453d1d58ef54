"""PSNR as a metric module for evaluate."""

import evaluate
from torch import Tensor

from vpvae_hf.metrics import image_quality
from vpvae_hf.metrics.evaluate_modules import IMAGES, MeanOverItems


class PSNR(MeanOverItems, evaluate.Metric):
    """Peak signal-to-noise ratio of reconstructed images in dB: higher is better, and equal images have infinity.

    Of each image, over all channels (RGB as it is, not luma), from values clipped to [-1, 1] and shifted to [0, 1], so
    that the data range is 1; then the mean over images. At least 11 pixels a side.

    Gives "psnr", "items" (how many images) and "undefined" (how many of them have none, because of NaN).
    """

    arguments = IMAGES
    citation_text = (
        "Quan Huynh-Thu and Mohammed Ghanbari: Scope of validity of PSNR in image/video quality assessment. "
        "Electronics Letters 44(13), 2008"
    )

    def values(self, predictions: Tensor, references: Tensor) -> Tensor:
        return image_quality(predictions, references)["psnr"]
