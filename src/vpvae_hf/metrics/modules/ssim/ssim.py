"""SSIM as a metric module for evaluate."""

import evaluate
from torch import Tensor

from vpvae_hf.metrics import image_quality
from vpvae_hf.metrics.evaluate_modules import IMAGES, MeanOverItems


class SSIM(MeanOverItems, evaluate.Metric):
    """Structural similarity of reconstructed images: 1 where they are equal.

    Of each image, over all channels (RGB as it is, not luma), from values clipped to [-1, 1] and shifted to [0, 1], so
    that the data range is 1; with the usual 11-pixel Gaussian window of standard deviation 1.5, also across the border,
    where the image is mirrored; then the mean over images. At least 11 pixels a side.

    Gives "ssim", "items" (how many images) and "undefined" (how many of them have none, because of NaN).
    """

    arguments = IMAGES
    citation_text = (
        "Zhou Wang, Alan C. Bovik, Hamid R. Sheikh and Eero P. Simoncelli: Image quality assessment: from error "
        "visibility to structural similarity. IEEE Transactions on Image Processing 13(4), 2004"
    )

    def values(self, predictions: Tensor, references: Tensor) -> Tensor:
        return image_quality(predictions, references)["ssim"]
