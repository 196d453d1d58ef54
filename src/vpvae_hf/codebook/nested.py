"""Codebooks within each other: the codes of a larger one divide the cells of a smaller one."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from vpvae_hf import distributed
from vpvae_hf.neighbors import nearest_point
from vpvae_hf.progress import progress_bar
from vpvae_hf.settings import require

from .kmeans import KMeansResult, fit_kmeans, gathered


def require_nested_sizes(sizes: Sequence[int]) -> None:
    """Raise a ValueError unless there are several sizes, each a multiple of the next smaller one."""
    rising = sorted(sizes)
    valid = len(rising) > 1 and all(large > small and large % small == 0 for small, large in pairwise(rising))
    require(valid, "codebook_size", list(sizes), "several sizes, each a multiple of the next smaller one, if nested")


def fit_nested_kmeans(
    latents: Tensor, sizes: Sequence[int], *, seed: int = 0, across_ranks: bool = False, progress: bool = False
) -> list[KMeansResult]:
    """Codebooks of rising sizes: K-means, then K-means within each cell. Code c of one is in the cell c // (K / K').

    If a cell has fewer distinct latents than it should hold codes, the remaining codes are copies of its own centroid,
    which no latent is nearest to. The distortion is that of the nearest codes among all codes of a codebook.

    Args:
        latents: [N, d], at least as many of them distinct as the smallest size.
        sizes: each K a multiple of the next smaller K'; in any order.
        seed, across_ranks, progress: as for `fit_kmeans`.
    """
    require_nested_sizes(sizes)
    found, sizes = None, sorted(sizes)
    latents = gathered(latents, sizes[0], None, seed, across_ranks)
    with torch.no_grad(), distributed.failing_together(across_ranks):
        if not across_ranks or distributed.rank() == 0:
            found = _nested(latents, sizes, seed, progress)
    return distributed.objects_of_all_ranks(found)[0] if across_ranks else found


def _nested(latents: Tensor, sizes: Sequence[int], seed: int, progress: bool) -> list[KMeansResult]:
    found = [fit_kmeans(latents, sizes[0], latents_per_code=None, seed=seed, progress=progress)]
    latents = latents.cpu()
    codes = nearest_point(latents, found[0].centroids)[1]
    for size in sizes[1:]:
        parents = found[-1].centroids
        share = size // len(parents)
        order = codes.argsort(stable=True)
        cells = latents[order].split(torch.bincount(codes, minlength=len(parents)).tolist())
        children, places = [], []
        how = {"total": len(parents), "desc": f"K-means K={size}", "unit": "cell", "shown": progress}
        with progress_bar(**how) as bar:
            for parent, cell in zip(parents, cells, strict=True):
                children.append(_divided(cell, parent, share, seed))
                places.append(nearest_point(cell, children[-1])[1] if len(cell) else codes.new_empty(0))
                bar.update()
        codes[order] = codes[order] * share + torch.cat(places)
        centroids = torch.cat(children)
        distances, _ = nearest_point(latents, centroids)
        found.append(KMeansResult(centroids, float(distances.square().mean()), found[0].iterations))
    return found


def _divided(cell: Tensor, parent: Tensor, share: int, seed: int) -> Tensor:
    """[share, d] codes for a cell: the latents [n, d] nearest to a centroid [d]."""
    distinct = cell.unique(dim=0)
    if len(distinct) > share:
        return fit_kmeans(cell, share, latents_per_code=None, seed=seed).centroids
    return torch.cat([distinct, parent.expand(share - len(distinct), -1)])
