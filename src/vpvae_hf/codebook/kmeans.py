"""K-means codebooks, eq. (12). Shapes: N latents, K centroids, d dimensions."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vpvae_hf import distributed
from vpvae_hf.neighbors import in_tree_order, nearest_point
from vpvae_hf.progress import progress_bar
from vpvae_hf.settings import require_integer
from vpvae_hf.tensors import as_real

# Seeds come from a sample of this many latents per code; more lower the distortion after ten iterations by under 0.1%.
_SAMPLED_PER_CODE = 32
# Seeds are refined on at most an eighth of all latents, so that ten iterations cost little more than one on all.
_REFINING_PART = 8
_SAMPLE_ITERATIONS, _SAMPLE_TOLERANCE = 10, 1e-3
# A quarter of the K seeds is drawn evenly, then each round adds half as many as there are. If there are fewer and
# larger rounds, seeds of one round lie close to each other; more rounds lower the distortion after ten iterations by
# less than 0.1%.
_FIRST_PART, _GROWTH = 4, 2
_REPAIR_ROUNDS = 10
# The most empty clusters that one pass can fill.
_FARTHEST = 1024
# In up to 5 dimensions a search by tree overtakes faiss' comparison of all pairs at about this many codes (measured).
_TREE_DIMENSIONS, _TREE_CODES = 5, 8192
# Bounds the temporaries of a pass: 2^18 latents of 5 dimensions are 5 MB, and a pass takes some ten times that.
_CHUNK_LATENTS = 1 << 18
# Whole numbers up to 2^53 are exact in float64.
_EXACT_BITS = 53
# faiss ends the process if a squared distance overflows float32.
_MOST_SQUARE = 1e37


class TooFewDistinctError(ValueError):
    """Fewer distinct latents than codes; `distinct` says how many there are."""

    def __init__(self, message: str, distinct: int):
        super().__init__(message, distinct)
        self.distinct = distinct

    def __str__(self) -> str:
        return self.args[0]


@dataclass(frozen=True)
class KMeansResult:
    """What K-means found.

    Attributes:
        centroids: [K, d] float32 on the CPU, each of them the nearest centroid of at least one latent.
        distortion: mean squared Euclidean distance of a latent to its centroid.
        iterations: number of Lloyd iterations done.
    """

    centroids: Tensor
    distortion: float
    iterations: int


def fit_kmeans(
    latents: Tensor,
    codebook_size: int,
    *,
    latents_per_code: int | None = 256,
    max_iterations: int = 50,
    tolerance: float = 1e-4,
    seed: int = 0,
    across_ranks: bool = False,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> KMeansResult:
    """Cluster latents into a codebook: seeds spread by squared distance, then Lloyd iterations; no cluster ends empty.

    The same latents and seed give the same centroids to the bit, even if the latents are spread over ranks, as long as
    all latents are used (see `latents_per_code`). There is no need to cluster a billion latents: draw 256 per code,
    evenly from all of the data, as `latents_per_code` does with latents that fit into memory.

    Args:
        latents: [N, d], finite, at least `codebook_size` of them distinct.
        codebook_size: K.
        latents_per_code: if there are more latents per code than this, this many per code are drawn evenly; None takes
            all. With four times 256, the distortion on other latents is 1 to 2% lower and the time four times as long.
        max_iterations: an upper limit of Lloyd iterations.
        tolerance: stop when an iteration lowers the distortion by less than this share of it.
        across_ranks: the first rank clusters the latents of all ranks together. Every rank of a distributed job must
            make this call, and every rank gets the same result.
        device: the CPU or a CUDA device; by default the latents' device if that is CUDA, otherwise the CPU. A CUDA
            device also clusters latents in main memory: each pass copies them in parts of 5 MB (at 5 dimensions).
        progress: show a bar on stderr, on the first rank.

    Raises:
        TypeError: latents that are no numbers.
        ValueError: latents that are not a matrix of finite values or are fewer than K, or a limit below 1.
        TooFewDistinctError: a ValueError; fewer distinct latents than K.
        RuntimeError: latents are so close together that K of them cannot be distinguished in float32, or another rank
            failed.
    """
    require_integer("max_iterations", max_iterations, 1)
    require_integer("codebook_size", codebook_size, 1)
    if latents_per_code is not None:
        require_integer("latents_per_code", latents_per_code, 1)
    result = None
    with torch.no_grad():
        latents = gathered(latents, codebook_size, latents_per_code, seed, across_ranks)
        device = latents.device if device is None else torch.empty(0, device=device).device
        latents = latents if latents.device.type == "cpu" else latents.to(device)
        with distributed.failing_together(across_ranks):
            if not across_ranks or distributed.rank() == 0:
                description = f"K-means K={codebook_size}"
                how = {"desc": description, "unit": "iteration", "shown": progress}
                with progress_bar(total=max_iterations, **how) as bar:
                    result = _cluster(latents, codebook_size, max_iterations, tolerance, seed, device, bar)
                    bar.total = result.iterations  # fewer than the limit if it converged
    return distributed.objects_of_all_ranks(result)[0] if across_ranks else result


def gathered(latents: Tensor, size: int, latents_per_code: int | None, seed: int, across_ranks: bool) -> Tensor:
    """The checked latents [N, d] float32, of all ranks if asked, on CUDA or the CPU, since sums take float64."""
    with distributed.failing_together(across_ranks):
        latents = as_real(latents, "latents")
        if latents.ndim != 2 or not latents.shape[1]:
            raise ValueError(f"latents must be [N, d], d at least 1, got shape {tuple(latents.shape)}")
    latents = (latents.detach() if latents.device.type == "cuda" else latents.detach().cpu()).float()
    totals = torch.tensor([len(latents), int((~(latents.square().sum(dim=1) < _MOST_SQUARE)).sum())], device="cpu")
    if across_ranks:
        dim = latents.shape[1]
        most, least = distributed.max_over_ranks(torch.tensor([dim, -dim], device="cpu")).tolist()
        if most != -least:
            raise ValueError(f"latents must have one dimension d on all ranks, got {-least} to {most}")
        totals = distributed.sum_over_ranks(totals)
    count, bad = totals.tolist()
    if bad:
        raise ValueError(
            f"{bad} of {count} latents are NaN or infinite, or too large to square in float32; "
            "the model that made them has diverged, or its input held such values"
        )
    if count < size:
        raise ValueError(
            f"codebook_size={size} is larger than the number of latents, {count}; "
            "give more data or ask for a smaller codebook"
        )
    # Another seed than the one that draws the sample.
    seed += 1 + 0x9E3779B1 * (distributed.rank() if across_ranks else 0)
    if latents_per_code is not None:
        drawn_share = min(1, latents_per_code * size / count)
        latents = _drawn(latents, math.ceil(len(latents) * drawn_share), seed)
    return distributed.rows_of_all_ranks(latents) if across_ranks else latents


def _cluster(
    latents: Tensor, size: int, max_iterations: int, tolerance: float, seed: int, device: torch.device, bar: tqdm
) -> KMeansResult:
    sample = _drawn(latents, _SAMPLED_PER_CODE * size, seed).to(device)
    lloyd = _Lloyd(latents, device)
    if _by_tree(size, sample):
        sample, lloyd.latents = in_tree_order(sample), in_tree_order(latents.to(device))
    centroids = _seeds(sample, size, seed)
    if len(centroids) < size:
        # The sample holds too few distinct latents; all of them together may have enough.
        distinct = torch.unique(latents.cpu(), dim=0)
        if len(distinct) < size:
            raise TooFewDistinctError(
                f"codebook_size={size} is larger than the number of distinct latents, {len(distinct)} of "
                f"{len(latents)}; give more varied data, ask for a smaller codebook, or look for a collapsed encoder",
                len(distinct),
            )
        centroids = _distinct_rows(torch.cat([centroids.cpu(), distinct]), size).to(device)
    # A few iterations on the sample cost little and save some on all latents (Bradley and Fayyad 1998).
    if len(sample) < len(latents):
        part = sample[:: math.ceil(_REFINING_PART * len(sample) / len(latents))]
        centroids, _ = lloyd.iterate(centroids, _SAMPLE_ITERATIONS, _SAMPLE_TOLERANCE, part)
    centroids, iterations = lloyd.iterate(centroids, max_iterations, tolerance, lloyd.latents, bar)
    centroids, distortion = lloyd.settle(centroids)
    return KMeansResult(centroids.cpu(), distortion, iterations)


def _drawn(rows: Tensor, size: int, seed: int) -> Tensor:
    """`size` rows drawn evenly, in their order, or all rows if there are not more."""
    if size >= len(rows):
        return rows
    # Generators on a CPU use only the low 32 bits of a seed.
    generator = torch.Generator(rows.device).manual_seed(seed % 2**32)
    keys = torch.rand(len(rows), dtype=torch.float64, generator=generator, device=rows.device)
    return rows[keys <= keys.kthvalue(size).values]


def _seeds(sample: Tensor, codebook_size: int, seed: int) -> Tensor:
    """K distinct latents of a sample [n, d], or all distinct ones if they are fewer, spread by squared distance."""
    # Draws many seeds at a time, each with a probability proportional to its squared distance from those before, as
    # k-means|| (Bahmani et al. 2012) does, but only K in all, so that no surplus remains to be clustered. This takes
    # four searches for the nearest points of n latents.
    generator = torch.Generator(sample.device).manual_seed(seed)
    squares = sample.new_ones(len(sample))
    drawn: list[Tensor] = []
    missing = codebook_size
    count = max(1, codebook_size // _FIRST_PART)
    while missing and (squares > 0).any():
        # The least of exponential variables divided by their weights are a weighted draw without replacement.
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


class _Assigned(NamedTuple):
    """What one pass over the latents finds for some centroids."""

    means: Tensor  # [K, d] float32: of each cluster's latents
    empty: Tensor  # [K] bool
    empty_count: int
    distortion: float
    farthest: Tensor  # [., d]: if clusters are empty, latents far from their centroids, the farthest first


class _Lloyd:
    # Latents are summed as whole numbers of grid steps from the middle of their range. The grid is so coarse that sums
    # in float64 are exact, hence the same in any order, also on CUDA. Yet it is fine: the rounding is at most 2^-53 N
    # of the dimension's range, so with a million latents 33 bits of the range remain.

    def __init__(self, latents: Tensor, device: torch.device):
        self.latents, self._device = latents, device
        lower, upper = latents.amin(dim=0).cpu().double(), latents.amax(dim=0).cpu().double()
        center, summands = (lower + upper) / 2, math.ceil(math.log2(len(latents)))
        reach = upper - center
        grid_step = torch.where(reach > 0, 2 ** (reach.log2().ceil() + summands - _EXACT_BITS), 1.0)
        self._center, self._grid_step = center.to(device), grid_step.to(device)

    def iterate(
        self, centroids: Tensor, most: int, tolerance: float, latents: Tensor, bar: tqdm | None = None
    ) -> tuple[Tensor, int]:
        """Move each centroid to the mean of its latents until the distortion hardly falls: centroids, iterations."""
        previous = math.inf
        for iteration in range(most):
            assigned = self._assign(latents, centroids, exact=False)
            if math.isfinite(previous) and previous - assigned.distortion <= tolerance * assigned.distortion:
                return centroids, iteration
            previous = assigned.distortion
            centroids = _filled(torch.where(assigned.empty.unsqueeze(1), centroids, assigned.means), assigned)
            if bar is not None:
                bar.update()
                bar.set_postfix(distortion=f"{assigned.distortion:.4g}")
        return centroids, most

    def settle(self, centroids: Tensor) -> tuple[Tensor, float]:
        """Centroids that each get a latent in an exact search, and their distortion."""
        for repairs in range(_REPAIR_ROUNDS + 1):
            assigned = self._assign(self.latents, centroids, exact=True)
            if not assigned.empty_count:
                return centroids, assigned.distortion
            if repairs == _REPAIR_ROUNDS or not len(assigned.farthest):
                break
            centroids = _filled(centroids, assigned)
        raise RuntimeError(
            f"{assigned.empty_count} of {len(centroids)} clusters stayed empty after {repairs} repairs; "
            "the latents lie too close together for float32, ask for a smaller codebook"
        )

    def _assign(self, latents: Tensor, centroids: Tensor, exact: bool) -> _Assigned:
        size = len(centroids)
        sums, counts = torch.zeros_like(centroids, dtype=torch.float64), centroids.new_zeros(size, dtype=torch.long)
        total, errors = centroids.new_zeros((), dtype=torch.float64), []
        for part in latents.split(_CHUNK_LATENTS):
            chunk = _moved(part, self._device)
            codes = self._codes(chunk, centroids, exact)
            errors.append((chunk - centroids[codes]).square().sum(dim=1))
            total += errors[-1].double().sum()
            sums.index_add_(0, codes, ((chunk.double() - self._center) / self._grid_step).round_())
            counts.scatter_add_(0, codes, torch.ones_like(codes))  # bincount would wait for the device
        empty = counts == 0
        total, empty_count = torch.stack([total, empty.sum().double()]).tolist()
        means = (sums / counts.double().unsqueeze(1) * self._grid_step + self._center).float()
        farthest = centroids[:0]
        if empty_count:
            worst = torch.cat(errors).topk(min(size, _FARTHEST, len(latents)))
            farthest = latents[worst.indices[worst.values > 0].to(latents.device)]
        return _Assigned(means, empty, int(empty_count), total / len(latents), farthest)

    def _codes(self, chunk: Tensor, centroids: Tensor, exact: bool) -> Tensor:
        if exact or chunk.device.type != "cpu" or _by_tree(len(centroids), chunk):
            return nearest_point(chunk, centroids)[1]
        import faiss  # only fitting needs it, inference runs without

        # faiss compares |x|^2 - 2xy + |y|^2, which loses digits far from the origin.
        center = self._center.float()
        _, codes = faiss.knn((chunk - center).contiguous().numpy(), (centroids - center).contiguous().numpy(), 1)
        return torch.from_numpy(codes[:, 0])


def _moved(chunk: Tensor, device: torch.device) -> Tensor:
    """A chunk on a device. It is copied there while the device computes and this process goes on."""
    return chunk if chunk.device == device else chunk.pin_memory().to(device, non_blocking=True)


def _by_tree(codebook_size: int, latents: Tensor) -> bool:
    """Whether a tree finds nearest centroids sooner than the comparison of all pairs by faiss."""
    return latents.device.type == "cpu" and latents.shape[1] <= _TREE_DIMENSIONS and codebook_size >= _TREE_CODES


def _filled(centroids: Tensor, assigned: _Assigned) -> Tensor:
    """The centroids, with those that no latent chooses moved onto latents that are far from their own centroids."""
    if not assigned.empty_count:
        return centroids
    onto = _distinct_rows(assigned.farthest.cpu(), assigned.empty_count).to(centroids.device)
    return centroids.index_copy(0, assigned.empty.nonzero()[: len(onto), 0], onto)


def _distinct_rows(rows: Tensor, count: int) -> Tensor:
    """The first `count` rows of [N, d] that differ from all rows before them."""
    _, inverse = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((len(rows),), len(rows), device="cpu", dtype=torch.long)
    first.scatter_reduce_(0, inverse, torch.arange(len(rows), device="cpu"), reduce="amin")
    return rows[first.sort().values[: min(count, len(torch.unique(inverse)))]]
