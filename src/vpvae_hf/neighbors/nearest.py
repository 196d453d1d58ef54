"""The single nearest point, exactly: nearest code of a latent, nearest draw of a resampled codebook."""

import torch
from scipy.spatial import cKDTree
from torch import Tensor

_BLOCK_ENTRIES = 1 << 24


def nearest_point(queries: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Find each query's nearest point by direct differences, never in a lower precision than float32.

    The answer for a query does not depend on the other queries, so a latent has the same code in every batch.

    Args:
        queries: [N, d], finite.
        points: [K, d], finite.

    Returns:
        Euclidean distances [N] float32 and indices [N] int64, on the queries' device.
    """
    queries, points = queries.detach().float(), points.detach().float()
    if queries.device.type == "cpu":
        found, indices = cKDTree(points.cpu().numpy()).query(queries.numpy(), k=1, workers=-1)
        return torch.from_numpy(found).float(), torch.from_numpy(indices).long()
    points = points.to(queries.device)
    blocks = queries.split(max(1, _BLOCK_ENTRIES // len(points)))
    nearest = [torch.cdist(q, points, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1) for q in blocks]
    return torch.cat([n.values for n in nearest]), torch.cat([n.indices for n in nearest])
