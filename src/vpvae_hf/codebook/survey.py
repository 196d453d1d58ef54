"""What a clustering needs to know of its latents before it starts.

Shapes: N latents, n of a chunk, d dimensions.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vpvae_hf import distributed

# Whole numbers up to 2^53 are exact in float64.
_EXACT_BITS = 53
# faiss ends the process where a squared distance overflows float32.
_MOST_SQUARE = 1e37


@dataclass(frozen=True)
class Survey:
    """Figures of the latents of all ranks.

    Attributes:
        count: N.
        center: [d] float64, the middle of their range.
        grid_step: of the grid that latents are rounded to when they are summed. It is so fine that the rounding, at
            most 2^-53 N of their range, is less than float32's own in all but huge data, and so coarse that sums in
            float64 are exact; hence they are the same in any order.
        sample: [n, d] of the latents, evenly drawn.
    """

    count: int
    center: Tensor
    grid_step: float
    sample: Tensor

    def in_grid(self, latents: Tensor) -> Tensor:
        """[n, d] whole numbers in float64: grid steps from the center."""
        return latents.double().sub_(self.center.to(latents.device)).div_(self.grid_step).round_()


def survey(chunks: Iterable[Tensor], codebook_size: int, sample_size: int, seed: int, across_ranks: bool) -> Survey:
    """Go through latents once.

    Raises:
        ValueError: no matrices [n, d], values that are not finite or too large, or fewer latents than `codebook_size`;
            on every rank alike, since a rank alone would leave the others waiting.
    """
    dim, problem = None, None
    lower = upper = torch.empty(0)
    count = bad = 0
    sample = _Sample(sample_size, seed + (distributed.rank() << 32 if across_ranks else 0))
    for chunk in chunks:
        if chunk.ndim != 2 or (dim is not None and chunk.shape[1] != dim):
            width = "d" if dim is None else dim
            problem = f"latents must be [N, {width}], got shape {tuple(chunk.shape)}"
            break
        chunk = chunk.detach().float()
        count += len(chunk)
        bad += int((~(chunk.square().sum(dim=1) < _MOST_SQUARE)).sum())
        if dim is None:
            dim = chunk.shape[1]
            lower, upper = torch.full((dim,), math.inf), torch.full((dim,), -math.inf)
        if len(chunk):
            lower, upper = torch.minimum(lower, chunk.amin(dim=0).cpu()), torch.maximum(upper, chunk.amax(dim=0).cpu())
            sample.add(chunk)
    if across_ranks:
        if count == 0 and problem is None:
            problem = "there are no latents on this rank; every rank must have some"
        count, bad, problem = _agreed(count, bad, problem, dim)
    if problem:
        raise ValueError(problem)
    if bad:
        raise ValueError(
            f"{bad} of {count} latents are NaN or infinite, or too large to square in float32; "
            "the model that made them has diverged, or its input held such values"
        )
    if count < codebook_size:
        raise ValueError(
            f"codebook_size={codebook_size} is larger than the number of latents, {count}; "
            "give more data or ask for a smaller codebook"
        )
    if across_ranks:
        upper, lower = distributed.max_over_ranks(upper), -distributed.max_over_ranks(-lower)
    center = (lower.double() + upper.double()) / 2
    reach = float((upper.double() - center).max())
    summands = math.ceil(math.log2(count)) if count > 1 else 0
    grid_step = 2.0 ** (math.ceil(math.log2(reach)) + summands - _EXACT_BITS) if reach else 1.0
    return Survey(count, center, grid_step, sample.rows(across_ranks))


def _agreed(count: int, bad: int, problem: str | None, dim: int | None) -> tuple[int, int, str | None]:
    """Sums over ranks, and a problem on every rank if there is one on any."""
    count, bad, problems = distributed.sum_over_ranks(torch.tensor([count, bad, problem is not None])).tolist()
    most, least = distributed.max_over_ranks(torch.tensor([dim or 0, -(dim or 0)])).tolist()
    if problem is None and problems:
        problem = "the latents of another rank are missing or no matrices [N, d]; see its error"
    elif problem is None and most != -least:
        problem = f"latents must have one dimension d on all ranks, got {-least} to {most}"
    return count, bad, problem


class _Sample:
    """An even draw from rows that pass by: those of the least random keys."""

    def __init__(self, size: int, seed: int):
        self._size, self._seed = size, seed
        self._generator: torch.Generator | None = None
        self._rows: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._bound = math.inf

    def add(self, rows: Tensor) -> None:
        if self._generator is None:
            self._generator = torch.Generator(rows.device).manual_seed(self._seed)
        keys = torch.rand(len(rows), dtype=torch.float64, generator=self._generator, device=rows.device)
        kept = keys < self._bound
        self._rows.append(rows[kept])
        self._keys.append(keys[kept])
        if sum(map(len, self._keys)) > 2 * self._size:
            self._cut()

    def _cut(self) -> None:
        rows, keys = torch.cat(self._rows), torch.cat(self._keys)
        if len(keys) > self._size:
            self._bound = float(keys.kthvalue(self._size).values)
            rows, keys = rows[keys <= self._bound], keys[keys <= self._bound]  # in the order they came
        self._rows, self._keys = [rows], [keys]

    def rows(self, across_ranks: bool) -> Tensor:
        """[at most `size`, d], of all ranks' rows if asked."""
        self._cut()
        if across_ranks:
            self._rows, self._keys = ([distributed.rows_of_all_ranks(part[0])] for part in (self._rows, self._keys))
            self._cut()
        return self._rows[0]
