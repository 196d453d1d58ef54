"""K-means codebooks, eq. (12), of latents in memory, on disk, from a generator, or spread over ranks.

Shapes: N latents, n of a chunk, K centroids, d dimensions.
"""

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vpvae_hf import distributed
from vpvae_hf.neighbors import in_tree_order, nearest_point

from .latent_chunks import CHUNK_LATENTS, prepared, repeatable_chunks
from .seeding import SEEDINGS, draw_seeds
from .survey import Survey, survey

# Seeds come from a sample of this many latents a code; more lower the distortion after ten iterations by under 0.1%.
_SAMPLED_PER_CODE = 32
# Seeds are refined on at most this part of all latents, so that ten iterations cost little more than one.
_REFINING_PART = 8
_SAMPLE_ITERATIONS, _SAMPLE_TOLERANCE = 10, 1e-3
_REPAIR_ROUNDS = 10
# Empty clusters that one pass can mend.
_FARTHEST = 1024
# In up to 5 dimensions a search by tree overtakes faiss' comparison of all pairs at about this many codes (measured).
_TREE_DIMENSIONS, _TREE_CODES = 5, 8192


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
    latents: Tensor | Iterable[Tensor],
    codebook_size: int,
    *,
    max_iterations: int = 50,
    tolerance: float = 1e-4,
    seeding: Literal["rounds", "k-means++"] = "rounds",
    seed: int = 0,
    across_ranks: bool = False,
    progress: bool = False,
) -> KMeansResult:
    """Cluster latents into a codebook: seeds spread by squared distance, then Lloyd iterations.

    The same latents and seed give the same centroids to the bit. Sums are exact, so that all ranks agree to the bit;
    where there are at most 32 latents a code the split over ranks makes no difference either (with more, seeds come
    from a sample that depends on it). No cluster ends empty. Computes on CUDA for latents that lie there, else on the
    CPU.

    Args:
        latents: N in all, finite, at least `codebook_size` of them distinct. A tensor [N, d]; or tensors [n, d], as a
            list, `LatentShards`, or a generator, which is spooled to a temporary folder (4 d bytes a latent).
        codebook_size: K.
        max_iterations: an upper limit of Lloyd iterations.
        tolerance: stop when an iteration lowers the distortion by less than this share of it.
        seeding: "rounds" or "k-means++" (equal distortion, and 3 times the time at K=1024, 30 times at K=16384).
        across_ranks: cluster the latents of all ranks of a distributed job together. Every rank must make this call,
            and every rank gets the same centroids.
        progress: show a bar on stderr, on the first rank.

    Raises:
        ValueError: not matrices of finite values, fewer distinct latents than K, no iterations, unknown seeding.
        RuntimeError: latents so close together that K of them cannot be told apart in float32.
    """
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    if codebook_size < 1:
        raise ValueError(f"codebook_size must be at least 1, got {codebook_size}")
    if seeding not in SEEDINGS:
        raise ValueError(f"unknown seeding {seeding!r}; valid: {', '.join(SEEDINGS)}")
    hidden = not progress or (across_ranks and distributed.rank() > 0)
    with (
        torch.no_grad(),
        contextlib.ExitStack() as stack,
        tqdm(total=max_iterations, desc=f"K-means K={codebook_size}", unit="iteration", disable=hidden) as bar,
    ):
        with distributed.failing_together(across_ranks):
            chunks = stack.enter_context(repeatable_chunks(latents))
        found = survey(chunks, codebook_size, _SAMPLED_PER_CODE * codebook_size, seed, across_ranks)
        centroids = _seeds(found, chunks, codebook_size, seeding, seed, across_ranks)
        if isinstance(latents, Tensor) and _by_tree(codebook_size, latents):
            chunks = in_tree_order(prepared(latents)).split(CHUNK_LATENTS)
        lloyd = _Lloyd(chunks, found, across_ranks)
        centroids, iterations = lloyd.iterate(centroids, max_iterations, tolerance, bar)
        centroids, distortion = lloyd.settle(centroids)
        return KMeansResult(centroids, distortion, iterations)


def _seeds(
    found: Survey, chunks: Iterable[Tensor], codebook_size: int, seeding: str, seed: int, across_ranks: bool
) -> Tensor:
    """[K, d] distinct first centroids, the same on every rank."""
    sample = in_tree_order(found.sample) if _by_tree(codebook_size, found.sample) else found.sample
    seeds = draw_seeds(sample, codebook_size, seeding, seed).cpu()
    if across_ranks:
        seeds = distributed.from_first_rank(seeds)
    if len(seeds) < codebook_size:
        # The sample holds too few distinct latents; all of them together may have enough.
        distinct = _distinct_latents(chunks, codebook_size, across_ranks)
        if len(distinct) < codebook_size:
            raise ValueError(
                f"codebook_size={codebook_size} is larger than the number of distinct latents, {len(distinct)} of "
                f"{found.count}; give more varied data, ask for a smaller codebook, or look for a collapsed encoder"
            )
        seeds = _distinct_rows(torch.cat([seeds, distinct]), codebook_size)
    # A few iterations on the sample cost little and save some on all latents (Bradley and Fayyad 1998).
    if len(sample) < found.count:
        part = sample[:: math.ceil(_REFINING_PART * len(sample) / found.count)]
        sampled = _Lloyd([part], found, across_ranks=False)
        seeds, _ = sampled.iterate(seeds, _SAMPLE_ITERATIONS, _SAMPLE_TOLERANCE)
    return distributed.from_first_rank(seeds) if across_ranks else seeds


def _distinct_latents(chunks: Iterable[Tensor], wanted: int, across_ranks: bool) -> Tensor:
    """At least `wanted` distinct latents, or all that there are."""
    distinct = None
    for chunk in chunks:
        rows = prepared(chunk).cpu()
        distinct = torch.unique(rows if distinct is None else torch.cat([distinct, rows]), dim=0)
        if len(distinct) >= wanted:
            break
    return torch.unique(distributed.rows_of_all_ranks(distinct), dim=0) if across_ranks else distinct


@dataclass
class _Assigned:
    """What one pass over the latents tells about some centroids."""

    sums: Tensor  # [K, d] float64: of each cluster's latents, from the center, in units of the survey's grid
    counts: Tensor  # [K]
    distortion: float
    farthest: Tensor  # [., d]: latents that lie far from their centroids, the farthest first

    @property
    def empty(self) -> Tensor:
        return self.counts == 0


class _Lloyd:
    """Lloyd's iterations over chunks of latents."""

    def __init__(self, chunks: Iterable[Tensor], found: Survey, across_ranks: bool):
        self._chunks, self._found, self._across_ranks = chunks, found, across_ranks

    def iterate(self, centroids: Tensor, most: int, tolerance: float, bar: tqdm | None = None) -> tuple[Tensor, int]:
        """Move each centroid to the mean of its latents until the distortion hardly falls: centroids, iterations."""
        previous = math.inf
        for iteration in range(most):
            assigned = self._assign(centroids, exact=False)
            if math.isfinite(previous) and previous - assigned.distortion <= tolerance * assigned.distortion:
                return centroids, iteration
            previous = assigned.distortion
            means = assigned.sums / assigned.counts.unsqueeze(1) * self._found.grid_step + self._found.center
            centroids = torch.where(assigned.empty.unsqueeze(1), centroids, means.float())
            centroids = _filled(centroids, assigned)
            if bar is not None:
                bar.update()
                bar.set_postfix(distortion=f"{assigned.distortion:.4g}")
        return centroids, most

    def settle(self, centroids: Tensor) -> tuple[Tensor, float]:
        """Centroids of which none is empty in an exact search, and their distortion."""
        for repairs in range(_REPAIR_ROUNDS + 1):
            assigned = self._assign(centroids, exact=True)
            empty = int(assigned.empty.sum())
            if not empty:
                return centroids, assigned.distortion
            if repairs == _REPAIR_ROUNDS or not len(assigned.farthest):
                break
            centroids = _filled(centroids, assigned)
        raise RuntimeError(
            f"{empty} of {len(centroids)} clusters stayed empty after {repairs} repairs; "
            "the latents lie too close together for float32, ask for a smaller codebook"
        )

    def _assign(self, centroids: Tensor, exact: bool) -> _Assigned:
        size, dim = centroids.shape
        sums = torch.zeros(size, dim, dtype=torch.float64)
        counts = torch.zeros(size, dtype=torch.float64)
        total = torch.zeros((), dtype=torch.float64)
        farthest, farthest_errors = torch.empty(0, dim), torch.empty(0)
        seen = 0
        for chunk in map(prepared, self._chunks):
            seen += len(chunk)
            codes = self._codes(chunk, centroids, exact)
            errors = (chunk - centroids.to(chunk.device)[codes]).square().sum(dim=1)
            total += errors.double().sum().cpu()
            units = self._found.in_grid(chunk)
            sums += _sums_by_code(units, codes, size).cpu()
            counts += torch.bincount(codes, minlength=size).cpu()
            worst = errors.topk(min(size, _FARTHEST, len(errors)))
            farthest = torch.cat([farthest, chunk[worst.indices].cpu()])
            farthest_errors = torch.cat([farthest_errors, worst.values.cpu()])
            kept = farthest_errors.topk(min(_FARTHEST, len(farthest))).indices
            farthest, farthest_errors = farthest[kept], farthest_errors[kept]
        if self._across_ranks:
            seen = int(distributed.sum_over_ranks(torch.tensor(seen)))
            sums, counts, total = (distributed.sum_over_ranks(t) for t in (sums, counts, total))
            farthest, farthest_errors = (distributed.rows_of_all_ranks(t) for t in (farthest, farthest_errors))
        order = farthest_errors.argsort(descending=True, stable=True)
        order = order[farthest_errors[order] > 0]
        return _Assigned(sums, counts, float(total) / seen, farthest[order])

    def _codes(self, chunk: Tensor, centroids: Tensor, exact: bool) -> Tensor:
        if exact or chunk.device.type != "cpu" or _by_tree(len(centroids), chunk):
            return nearest_point(chunk, centroids)[1]
        import faiss  # only fitting needs it, inference runs without

        # faiss compares |x|^2 - 2xy + |y|^2, which loses digits far from the origin.
        center = self._found.center.float()
        _, codes = faiss.knn((chunk - center).contiguous().numpy(), (centroids - center).contiguous().numpy(), 1)
        return torch.from_numpy(codes[:, 0])


def _by_tree(codebook_size: int, latents: Tensor) -> bool:
    """Whether a tree finds nearest centroids sooner than the comparison of all pairs by faiss."""
    return latents.device.type == "cpu" and latents.shape[1] <= _TREE_DIMENSIONS and codebook_size >= _TREE_CODES


def _filled(centroids: Tensor, assigned: _Assigned) -> Tensor:
    """Centroids that no latent chooses, moved onto latents that lie far from theirs."""
    if not assigned.empty.any():
        return centroids
    places = assigned.empty.nonzero()[:, 0]
    onto = _distinct_rows(assigned.farthest, len(places))
    return centroids.index_copy(0, places[: len(onto)], onto)


def _sums_by_code(values: Tensor, codes: Tensor, size: int) -> Tensor:
    """[K, d] sums of the rows [n, d] of each code."""
    if values.device.type == "cuda":  # where bincount is slower, and refused by torch's deterministic mode
        return values.new_zeros(size, values.shape[1]).index_add_(0, codes, values)
    return torch.stack([torch.bincount(codes, weights=column, minlength=size) for column in values.unbind(1)], dim=1)


def _distinct_rows(rows: Tensor, count: int) -> Tensor:
    """The first `count` rows of [N, d] that differ from all rows before them."""
    _, inverse = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((len(rows),), len(rows), dtype=torch.long)
    first.scatter_reduce_(0, inverse, torch.arange(len(rows)), reduce="amin")
    return rows[first.sort().values[: min(count, len(torch.unique(inverse)))]]
