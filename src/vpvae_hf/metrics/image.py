"""Metrics of reconstructed images."""

from collections.abc import Iterable
from pathlib import PurePath

from torch import Tensor

from vpvae_hf.losses import feature_distance_per_image, lpips_per_image
from vpvae_hf.tensors import as_floating

# SSIM mirrors the image by 5 pixels at its border.
_LEAST_SIDE = 6


def image_quality(
    reconstruction: Tensor, original: Tensor, *, lpips: bool = False, feature_networks: Iterable[str] = ()
) -> dict[str, Tensor]:
    """PSNR in dB and SSIM of each image, over all channels, from values clipped to [-1, 1] and shifted to [0, 1].

    Channels (grey, RGB or RGBA) are not converted to luma; the data range is 1. PSNR of equal images is infinite. SSIM
    is 1 for equal images and has the usual 11-pixel Gaussian window with standard deviation 1.5, also across the
    border, where the image is mirrored.

    Args:
        reconstruction, original: [B, C, H, W] in [-1, 1], at least 6 pixels a side, else a ValueError.
        lpips: measure LPIPS, too; its network may have to be downloaded, see `lpips_distance`.
        feature_networks: also measure the distance of these networks' features, see `feature_distance_per_image`.

    Returns:
        "psnr" and "ssim", and, if they are asked for, "lpips" and "features/NAME" with the last part of a network's
        name, each [B] float32.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    reconstruction, original = _images(reconstruction, original)
    if min(original.shape[-2:]) < _LEAST_SIDE:
        height, width = original.shape[-2:]
        raise ValueError(f"images of {height} x {width} pixels have no SSIM; it takes at least {_LEAST_SIDE} a side")
    made, true = ((x.float().clamp(-1, 1) + 1) / 2 for x in (reconstruction, original))
    dims = tuple(range(1, made.ndim))
    quality = {
        "psnr": peak_signal_noise_ratio(made, true, data_range=1.0, reduction="none", dim=dims),
        "ssim": structural_similarity_index_measure(made, true, data_range=1.0, reduction="none"),
    }
    if lpips:
        quality["lpips"] = lpips_distance(reconstruction, original)
    clipped = [x.clamp(-1, 1) for x in (reconstruction, original)]
    for network in feature_networks:
        quality[f"features/{PurePath(network).name}"] = feature_distance_per_image(*clipped, network=network)
    return quality


def lpips_distance(reconstruction: Tensor, original: Tensor) -> Tensor:
    """LPIPS with VGG16 (Zhang et al. 2018, arXiv 1801.03924) of each image, from values clipped to [-1, 1].

    Published values may be those of another network, e.g. AlexNet; do not compare with those. Images are [B, C, H, W]
    with 1 or 3 channels, at least 16 pixels a side; see `lpips_per_image`, also for errors.
    """
    return lpips_per_image(*(x.clamp(-1, 1) for x in _images(reconstruction, original)))


def _images(*batches: Tensor) -> list[Tensor]:
    images = [as_floating(batch, "images") for batch in batches]
    shapes = [tuple(batch.shape) for batch in images]
    if shapes[0] != shapes[1] or len(shapes[0]) != 4 or 0 in shapes[0]:
        raise ValueError(
            f"images must be two batches [B, C, H, W] of one shape and at least one image, got {shapes[0]} and "
            f"{shapes[1]}"
        )
    return images
