"""Moments of latents: the normalization loss, eqs. (11) and (14), and root mean squares."""

from torch import Tensor


def normalization_loss(
    latents: Tensor, mean_weight: float, variance_weight: float, target_variance: float = 1.0, *, whole: bool = False
) -> Tensor:
    """Draw a batch of latents towards mean 0 and a variance in every dimension, or in the mean of dimensions.

    l1 * mean over dimensions of (batch mean)^2 + l2 * mean over dimensions of (batch variance - target)^2. As a whole,
    the last is (mean over dimensions of batch variance - target)^2.

    Args:
        latents: [N, d].
        mean_weight: l1.
        variance_weight: l2.
        whole: leave it to the model how the variance is shared among the dimensions.

    Returns:
        [] float32.
    """
    mean = latents.mean(dim=0)
    variance = latents.var(dim=0, correction=0)
    if whole:
        variance = variance.mean(dim=0, keepdim=True)
    return mean_weight * mean.square().mean() + variance_weight * (variance - target_variance).square().mean()


def rms_length(vectors: Tensor) -> Tensor:
    """Root mean square Euclidean length of vectors [..., d], [] without a gradient."""
    return vectors.detach().square().sum(dim=-1).mean().sqrt()
