"""What a clustering needs to know of its latents before it starts.

Shapes: N latents, n of a chunk, d dimensions.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vpvae_hf import distributed

from .latent_chunks import prepared

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
        grid_step: [d] float64, of the grid that latents are rounded to when they are summed. It is so coarse that sums
            in float64 are exact, hence the same in any order, and still fine: the rounding is at most 2^-53 N of the
            dimension's range, so a million latents keep 33 bits of it.
        sample: [n, d] of the latents, evenly drawn.
    """

    count: int
    center: Tensor
    grid_step: Tensor
    sample: Tensor

    def in_grid(self, latents: Tensor) -> Tensor:
        """[n, d] whole numbers in float64: grid steps from the center."""
        return latents.double().sub_(self.center.to(latents.device)).div_(self.grid_step.to(latents.device)).round_()


def survey(chunks: Iterable[Tensor], codebook_size: int, sample_size: int, seed: int, across_ranks: bool) -> Survey:
    """Go through latents once.

    Raises:
        ValueError: no matrices [n, d], values that are not finite or too large, or fewer latents than `codebook_size`;
            on every rank alike, since a rank alone would leave the others waiting.
    """
    dim, count, bad = None, 0, 0
    lower = upper = torch.empty(0)
    # Generators on a CPU look at the low 32 bits of a seed only.
    sample = _Sample(sample_size, (seed + 0x9E3779B1 * (distributed.rank() if across_ranks else 0)) % 2**32)
    with distributed.failing_together(across_ranks):
        for chunk in map(prepared, chunks):
            if chunk.ndim != 2 or dim not in (None, chunk.shape[1]):
                width = "d" if dim is None else dim
                raise ValueError(f"latents must be [N, {width}], got shape {tuple(chunk.shape)}")
            if dim is None:
                dim = chunk.shape[1]
                lower, upper = torch.full((dim,), math.inf), torch.full((dim,), -math.inf)
            if len(chunk):
                count += len(chunk)
                bad += int((~(chunk.square().sum(dim=1) < _MOST_SQUARE)).sum())
                lower = torch.minimum(lower, chunk.amin(dim=0).cpu())
                upper = torch.maximum(upper, chunk.amax(dim=0).cpu())
                sample.add(chunk)
        if across_ranks and count == 0:
            raise ValueError("there are no latents on this rank; every rank must have some")
    if across_ranks:
        count, bad = distributed.sum_over_ranks(torch.tensor([count, bad])).tolist()
        most, least = distributed.max_over_ranks(torch.tensor([dim, -dim])).tolist()
        if most != -least:
            raise ValueError(f"latents must have one dimension d on all ranks, got {-least} to {most}")
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
    reach = upper.double() - center
    summands = math.ceil(math.log2(count))
    grid_step = torch.where(reach > 0, 2 ** (reach.log2().ceil() + summands - _EXACT_BITS), 1.0)
    return Survey(count, center, grid_step, sample.rows(across_ranks))


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
