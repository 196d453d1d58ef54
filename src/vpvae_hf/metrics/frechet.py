"""Fréchet distance between two sets by a network's features, as in FID (arXiv 1706.08500, eq. 6).

Shapes: N items of a set, D features of an item.
"""

import torch
from torch import Tensor


def feature_moments(features: Tensor) -> Tensor:
    """[D + 1, D + 1] float64 of features [N, D]: sums of products; the last column holds sums of features, and N.

    The moments of several batches, also of several ranks, add up to those of all of them.
    """
    features = torch.nn.functional.pad(features.double(), (0, 1), value=1.0)
    return features.mT @ features


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of two sets' means and covariances, from their `feature_moments`.

    It falls as sets grow, so compare it only between sets of one size. Raises a ValueError for fewer than two items.
    """
    (mean, covariance), (other_mean, other_covariance) = map(_mean_and_covariance, (first, second))
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    # C C' has the eigenvalues of this symmetric matrix.
    cross = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp_min(0).sqrt().sum()
    distance = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * cross
    return max(0.0, float(distance))  # for equal sets, rounding may make it negative


def _mean_and_covariance(moments: Tensor) -> tuple[Tensor, Tensor]:
    count = float(moments[-1, -1])
    if count < 2:
        raise ValueError(f"the Fréchet distance needs at least 2 items, got {count:.0f}")
    mean = moments[:-1, -1] / count
    return mean, (moments[:-1, :-1] - count * mean[:, None] * mean) / (count - 1)
