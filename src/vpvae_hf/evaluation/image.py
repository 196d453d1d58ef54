"""Quality of reconstructed images."""

from torch import Tensor


def image_quality(reconstruction: Tensor, original: Tensor) -> dict[str, Tensor]:
    """PSNR in dB and SSIM of each image, over all channels, from values clipped to [-1, 1] and shifted to [0, 1].

    SSIM has the usual 11-pixel Gaussian window with standard deviation 1.5.

    Args:
        reconstruction, original: [B, C, H, W] in [-1, 1], at least 11 pixels a side.

    Returns:
        "psnr" and "ssim", each [B] float32.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    made, true = ((x.float().clamp(-1, 1) + 1) / 2 for x in (reconstruction, original))
    dims = tuple(range(1, made.ndim))
    return {
        "psnr": peak_signal_noise_ratio(made, true, data_range=1.0, reduction="none", dim=dims),
        "ssim": structural_similarity_index_measure(made, true, data_range=1.0, reduction="none"),
    }
