"""First centroids for K-means, spread by squared distance.

Shapes: n latents of a sample, K centroids, d dimensions.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vpvae_hf.neighbors import nearest_point

SEEDINGS = ("rounds", "k-means++")
# Of K seeds a quarter is drawn evenly, then each round adds half as many as there are. With fewer and larger rounds the
# seeds of one round lie beside each other; more rounds lower the distortion after ten iterations by less than 0.1%.
_FIRST_PART, _GROWTH = 4, 2


def draw_seeds(sample: Tensor, codebook_size: int, seeding: Literal["rounds", "k-means++"], seed: int) -> Tensor:
    """Choose K distinct latents of a sample [n, d], or as many as it has where those are fewer.

    "k-means++" (Arthur and Vassilvitskii 2007) draws one after the other, each in proportion to the squared distance
    from those before: n K distances, on the CPU. "rounds" draws many at a time from the same distribution, as k-means||
    (Bahmani et al. 2012) does, but K in all, so that none are left over to cluster: four searches for n nearest points.

    Returns:
        [K, d] float32 on the sample's device.
    """
    if seeding == "k-means++":
        return _one_by_one(sample, codebook_size, seed)
    return _by_rounds(sample, codebook_size, seed)


def _by_rounds(sample: Tensor, codebook_size: int, seed: int) -> Tensor:
    generator = torch.Generator(sample.device).manual_seed(seed)
    squares = sample.new_ones(len(sample))
    drawn: list[Tensor] = []
    missing = codebook_size
    count = max(1, codebook_size // _FIRST_PART)
    while missing and (squares > 0).any():
        # The least of exponential variables divided by their weights: a draw without replacement by weight.
        keys = torch.empty_like(squares).exponential_(generator=generator) / squares
        count = min(count, missing, int((squares > 0).sum()))
        new = sample[keys.topk(count, largest=False).indices]
        drawn.append(torch.unique(new, dim=0))
        missing -= len(drawn[-1])
        if missing:
            distances, _ = nearest_point(sample, new)
            squares = torch.minimum(squares, distances.square()) if len(drawn) > 1 else distances.square()
        count = max(1, (codebook_size - missing) // _GROWTH)
    return torch.cat(drawn)


def _one_by_one(sample: Tensor, codebook_size: int, seed: int) -> Tensor:
    import faiss  # only fitting needs it, inference runs without

    # faiss compares |x|^2 - 2xy + |y|^2, which loses digits far from the origin.
    center = sample.mean(dim=0)
    vectors = (sample - center).cpu().contiguous().numpy()
    seeds = np.empty((min(codebook_size, len(vectors)), vectors.shape[1]), dtype=np.float32)
    initialization = faiss.ClusteringInitialization(seeds.shape[1], len(seeds))
    initialization.method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    initialization.seed = seed
    initialization.init_centroids(len(vectors), faiss.swig_ptr(vectors), faiss.swig_ptr(seeds))
    seeds = torch.from_numpy(seeds).to(sample.device)
    # Back to latents as they were, to the bit.
    _, chosen = nearest_point(seeds, sample - center)
    return torch.unique(sample[chosen], dim=0)
