"""K-means codebooks, eq. (12).

Shapes: N latents, K centroids, d dimensions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vpvae_hf.neighbors import nearest_point

_REPAIR_ROUNDS = 10


@dataclass(frozen=True)
class KMeansResult:
    """What K-means found.

    Attributes:
        centroids: [K, d] float32 on the CPU, all of them the nearest centroid of at least one latent.
        distortion: mean squared Euclidean distance of a latent to its centroid.
        iterations: Lloyd iterations done.
    """

    centroids: Tensor
    distortion: float
    iterations: int


def fit_kmeans(
    latents: Tensor,
    codebook_size: int,
    *,
    max_iterations: int = 50,
    tolerance: float = 1e-4,
    seed: int = 0,
    progress: bool = False,
) -> KMeansResult:
    """Cluster latents into a codebook: k-means++ seeds, then Lloyd iterations, both by faiss.

    The same latents and seed give the same centroids to the bit. No cluster ends empty.

    Args:
        latents: [N, d], finite, at least `codebook_size` of them distinct.
        codebook_size: K.
        max_iterations: an upper limit of Lloyd iterations.
        tolerance: stop when an iteration lowers the distortion by less than this share of it.
        progress: show a bar on stderr.

    Raises:
        ValueError: not a matrix of finite values, fewer distinct latents than K, or no iterations.
        RuntimeError: latents so close together that K of them cannot be told apart in float32.
    """
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    import faiss  # only fitting needs it, inference runs without

    latents = _checked(latents, codebook_size)
    # faiss compares |x|^2 - 2xy + |y|^2, which loses digits far from the origin.
    center = latents.double().mean(dim=0)
    vectors = (latents - center).float().contiguous().numpy()
    distortion, centroids, iteration = np.inf, None, 0
    bar = tqdm(total=max_iterations, desc=f"K-means K={codebook_size}", unit="iteration", disable=not progress)
    with bar:
        while iteration < max_iterations:
            # One iteration a call: faiss itself shows no progress and knows no relative tolerance.
            kmeans = faiss.Kmeans(
                vectors.shape[1],
                codebook_size,
                niter=1,
                seed=seed,
                init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
                min_points_per_centroid=1,
                max_points_per_centroid=len(vectors),
            )
            kmeans.train(vectors, init_centroids=centroids)
            iteration += 1
            centroids, previous = kmeans.centroids.copy(), distortion
            distortion = float(kmeans.obj[-1]) / len(vectors)
            bar.update()
            bar.set_postfix(distortion=f"{distortion:.4g}")
            if previous - distortion <= tolerance * distortion and np.isfinite(previous):
                break
    fitted, distortion = _without_empty_clusters(latents, (torch.from_numpy(centroids) + center).float())
    return KMeansResult(fitted, distortion, iteration)


def _checked(latents: Tensor, codebook_size: int) -> Tensor:
    if latents.ndim != 2:
        raise ValueError(f"latents must be [N, d], got shape {tuple(latents.shape)}")
    if codebook_size < 1:
        raise ValueError(f"codebook_size must be at least 1, got {codebook_size}")
    latents = latents.detach().float().cpu()
    # faiss ends the process where a squared distance overflows float32.
    finite = latents.square().sum(dim=1) < 1e37
    if not finite.all():
        raise ValueError(
            f"{int((~finite).sum())} of {len(latents)} latents are NaN or infinite, or too large to square in float32; "
            "the model that made them has diverged, or its input held such values"
        )
    if len(latents) < codebook_size:
        raise ValueError(
            f"codebook_size={codebook_size} is larger than the number of latents, {len(latents)}; "
            "give more data or ask for a smaller codebook"
        )
    distinct = len(torch.unique(latents, dim=0))
    if distinct < codebook_size:
        raise ValueError(
            f"codebook_size={codebook_size} is larger than the number of distinct latents, {distinct} "
            f"of {len(latents)}; give more varied data, ask for a smaller codebook, or look for a collapsed encoder"
        )
    return latents


def _without_empty_clusters(latents: Tensor, centroids: Tensor) -> tuple[Tensor, float]:
    """Move centroids that no latent chooses onto the latents that lie farthest from theirs."""
    for _ in range(_REPAIR_ROUNDS):
        errors, codes = nearest_point(latents, centroids)
        empty = torch.bincount(codes, minlength=len(centroids)) == 0
        if not empty.any():
            break
        farthest = _distinct_rows(latents[errors.argsort(descending=True)], int(empty.sum()))
        centroids = centroids.clone()
        centroids[empty] = farthest
    else:
        raise RuntimeError(
            f"{int(empty.sum())} of {len(centroids)} clusters stayed empty after {_REPAIR_ROUNDS} repairs; "
            "the latents lie too close together for float32, ask for a smaller codebook"
        )
    return centroids, float(errors.double().square().mean())


def _distinct_rows(rows: Tensor, count: int) -> Tensor:
    """The first `count` rows of [N, d] that differ from all rows before them."""
    head = rows[: 4 * count]
    if len(torch.unique(head, dim=0)) < count:
        head = rows
    _, inverse = torch.unique(head, dim=0, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(head), dtype=torch.long, device=head.device)
    first.scatter_reduce_(0, inverse, torch.arange(len(head), device=head.device), reduce="amin")
    return head[first.sort().values[:count]]
