"""Learned perceptual distance between images."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

# VGG16 halves the image four times before the last features that LPIPS compares.
MINIMUM_SIDE = 16


@cache
def load_lpips_network() -> nn.Module:
    """The frozen VGG16 of LPIPS in eval mode, loaded once per process; the first time, its weights are downloaded.

    It gives [B, 1, 1, 1] for two batches of images [B, 3, H, W] in [-1, 1]. It belongs to no model, so no model saves
    its weights. The global random state stays as it is, so that a run with LPIPS draws the same numbers as one without.

    Raises:
        ImportError: torchmetrics or torchvision is missing, or cannot be imported with this torch.
        OSError: VGG16's weights are not in torch's cache folder and cannot be downloaded.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import VGG16_Weights
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"LPIPS needs torchmetrics and a torchvision built for torch {torch.__version__}, but importing them gives "
            f"{error!r}: pip install torchmetrics, install torchvision from the index that torch came from "
            "(https://pytorch.org/get-started), or do without LPIPS"
        ) from error
    try:
        with torch.random.fork_rng(devices=[]):
            return LearnedPerceptualImagePatchSimilarity(net_type="vgg").net
    except OSError as error:
        url = VGG16_Weights.DEFAULT.url
        file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
        raise OSError(
            f"LPIPS needs VGG16's weights, but loading them gives {error!r}: download {url} where there is a network "
            f"and save it as {file}, or do without LPIPS"
        ) from error


def require_lpips_channels(channels: int) -> None:
    """Raise a ValueError if LPIPS cannot compare images with so many channels."""
    if channels not in (1, 3):
        raise ValueError(
            f"LPIPS compares images with 1 channel (grey) or 3 (RGB), got {channels} channels: do without LPIPS"
        )


def lpips_per_image(reconstruction: Tensor, original: Tensor) -> Tensor:
    """[B] float32: LPIPS with VGG16 (Zhang et al. 2018, arXiv 1801.03924) of each pair, 0 if both images are equal.

    It is computed in float32 under autocast, too, because features of similar images differ by less than half precision
    can resolve. The network follows the device of the images. Gradients reach both images, never the network.

    Args:
        reconstruction, original: [B, C, H, W] in [-1, 1], at least 16 pixels a side. Values outside are not clipped. C
            is 3, or 1: grey is then taken as RGB with equal channels.

    Raises:
        ValueError: another shape than that, or two different shapes.
        ImportError, OSError: see `load_lpips_network`.
    """
    shapes = [list(reconstruction.shape), list(original.shape)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"LPIPS compares images of one shape, got {shapes[0]} and {shapes[1]}: crop or resize one")
    if len(shapes[0]) != 4:
        raise ValueError(f"LPIPS needs images [B, C, H, W], got {shapes[0]}: add a dimension for the batch")
    require_lpips_channels(shapes[0][1])
    if min(shapes[0][2:]) < MINIMUM_SIDE:
        raise ValueError(
            f"LPIPS needs images of at least {MINIMUM_SIDE} pixels a side, got {shapes[0]}: use larger images, or do "
            "without LPIPS"
        )
    network = _network_on(reconstruction.device)
    with torch.autocast(reconstruction.device.type, enabled=False):
        rgb = [images.float().expand(-1, 3, -1, -1) for images in (reconstruction, original)]
        return network(*rgb).flatten()


def lpips_loss(reconstruction: Tensor, original: Tensor) -> Tensor:
    """[] float32: mean over images of `lpips_per_image`."""
    return lpips_per_image(reconstruction, original).mean()


def load_lpips_loss() -> Callable[[Tensor, Tensor], Tensor]:
    """`lpips_loss`, after loading its network; errors as for `load_lpips_network`."""
    load_lpips_network()
    return lpips_loss


def _network_on(device: torch.device) -> nn.Module:
    # Parameters made or moved in inference mode could not serve a later training step.
    with torch.inference_mode(False):
        network = load_lpips_network()
        # Moving a module walks through all of its parts, even if they are on the device already.
        return network if next(network.parameters()).device == device else network.to(device)
