"""Moments of latents: the normalization loss, eqs. (11) and (14), and root mean squares."""

from torch import Tensor


def normalization_loss(
    latents: Tensor, mean_weight: float, variance_weight: float, target_variance: float = 1.0, *, whole: bool = False
) -> Tensor:
    """l1 * mean over dimensions of (batch mean)^2 + l2 * mean over dimensions of (batch variance - target)^2.

    Args:
        latents: [N, d].
        mean_weight, variance_weight: l1 and l2.
        target_variance: what the variance of each dimension is drawn to.
        whole: the last term is (mean over dimensions of batch variance - target)^2, so that the model decides how the
            variance is distributed over dimensions.
    """
    mean = latents.mean(dim=0)
    variance = latents.var(dim=0, correction=0)
    if whole:
        variance = variance.mean(dim=0, keepdim=True)
    return mean_weight * mean.square().mean() + variance_weight * (variance - target_variance).square().mean()


def rms_length(vectors: Tensor) -> Tensor:
    """Root mean square Euclidean length of vectors [..., d], [] without a gradient."""
    return vectors.detach().square().sum(dim=-1).mean().sqrt()
