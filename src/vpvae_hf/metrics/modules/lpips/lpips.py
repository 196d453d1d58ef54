"""LPIPS as a metric module for evaluate."""

import evaluate
from torch import Tensor

from vpvae_hf.metrics import lpips_distance
from vpvae_hf.metrics.evaluate_modules import IMAGES, MeanOverItems


class LPIPS(MeanOverItems, evaluate.Metric):
    """Learned perceptual distance of reconstructed images: 0 where they are equal.

    LPIPS with VGG16 of each RGB image, from values clipped to [-1, 1], then the mean over images. At least 16 pixels a
    side. Published figures may be of another network, e.g. AlexNet, and do not compare. It needs a torchvision that
    imports beside this torch, and weights of VGG16 that are downloaded where they are not in the cache folder of torch.

    Gives "lpips", "items" (how many images) and "undefined" (how many of them have none, because of NaN).
    """

    arguments = IMAGES
    citation_text = (
        "Richard Zhang, Phillip Isola, Alexei A. Efros, Eli Shechtman and Oliver Wang: The unreasonable effectiveness "
        "of deep features as a perceptual metric. CVPR 2018, arXiv 1801.03924"
    )

    def values(self, predictions: Tensor, references: Tensor) -> Tensor:
        return lpips_distance(predictions, references)
