"""What FSP and FSQ share: a grid of levels in each dimension, even or refitted.

Shapes: levels L_1..L_d, K = L_1 * ... * L_d codes.
"""

import dataclasses
import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vpvae_hf.codebook import ScalarGrid, complete_levels
from vpvae_hf.settings import require
from vpvae_hf.tensors import as_real, constant, kept_for_training

from .base import Quantizer, QuantizerConfig


@dataclass(frozen=True, kw_only=True)
class ScalarGridConfig(QuantizerConfig):
    """Settings of a quantizer whose codes are a grid: levels are given, or derived from `codebook_size`.

    Attributes:
        codebook_size: K, the product of the levels. If no levels are given, they are chosen so that K is near this
            number.
        latent_dim: d, the number of levels.
        levels: L_i, each at least 2.
        refitted: whether `fit_codebook` has moved the levels of each dimension to where its latents lie; training
            always uses even levels.
    """

    code_defining_fields: ClassVar[tuple[str, ...]] = (*QuantizerConfig.code_defining_fields, "levels")
    fits: ClassVar[str | None] = "levels"
    codebook_size: int | None = None
    latent_dim: int | None = None
    levels: tuple[int, ...] | None = None
    refitted: bool = False

    def __post_init__(self):
        levels = complete_levels(self.levels, self.codebook_size, self.latent_dim)
        for name, value in (("levels", levels), ("latent_dim", len(levels)), ("codebook_size", math.prod(levels))):
            object.__setattr__(self, name, value)
        super().__post_init__()
        require(isinstance(self.refitted, bool), "refitted", self.refitted, "true or false")

    def without_fit(self) -> "ScalarGridConfig":
        return dataclasses.replace(self, refitted=False)


class ScalarGridQuantizer(Quantizer):
    """Quantizes each dimension of a latent by itself; a code is the mixed-radix number of the cells.

    Subclasses implement `even_cells` and `even_values`, which are used in training, and until levels are refitted.

    Buffers:
        level_values: [L_1 + ... + L_d] float32, the levels of one dimension after the other, in rising order within
            each; None unless levels are refitted. Each coordinate of a latent takes its nearest level.
    """

    config: ScalarGridConfig
    level_values: Tensor | None

    def __init__(self, config: ScalarGridConfig):
        super().__init__(config)
        self.grid = ScalarGrid(config.levels)
        self.register_buffer("level_values", self._no_values() if config.refitted else None)

    @property
    def fitted_tensors(self) -> tuple[Tensor, ...]:
        return () if self.level_values is None else (self.level_values,)

    @abstractmethod
    def even_cells(self, latents: Tensor) -> Tensor:
        """The cell of each coordinate, 0..L_i - 1: [..., d] int64 from [..., d]."""

    @abstractmethod
    def even_values(self, cells: Tensor) -> Tensor:
        """The coordinates that cells stand for: [..., d] float32 from [..., d]."""

    def nearest_codes(self, latents: Tensor) -> Tensor:
        if self.level_values is None:
            return self.grid.to_codes(self.even_cells(latents))
        values = self.level_values.to(latents.device).split(self.grid.levels)
        # The nearest level changes midway between two levels.
        cells = [
            (coordinate.unsqueeze(-1) > (each[:-1] + each[1:]) / 2).sum(dim=-1)
            for coordinate, each in zip(latents.unbind(dim=-1), values, strict=True)
        ]
        return self.grid.to_codes(torch.stack(cells, dim=-1))

    def lookup(self, codes: Tensor) -> Tensor:
        cells = self.grid.to_cells(codes)
        if self.level_values is None:
            return self.even_values(cells)
        before = (0, *itertools.accumulate(self.grid.levels[:-1]))
        return self.level_values.to(cells.device)[cells + constant(before, torch.long, cells)]

    @kept_for_training()
    def set_levels(self, values: Sequence[Tensor]) -> None:
        """Replace the even levels: for each dimension, [L_i] values in rising order."""
        counts = self.grid.levels
        rows = [as_real(each, "levels").detach().float() for each in values]
        if [tuple(row.shape) for row in rows] != [(count,) for count in counts]:
            raise ValueError(
                f"levels must hold {', '.join(map(str, counts))} values for {len(counts)} dimensions, got shapes "
                f"{', '.join(str(tuple(row.shape)) for row in rows)}"
            )
        if not all(torch.isfinite(row).all() and (row.diff() > 0).all() for row in rows):
            raise ValueError("levels of a dimension must be finite and in rising order, no two of them equal")
        self.level_values = torch.cat(rows)
        self.config = dataclasses.replace(self.config, refitted=True)

    def drop_fit(self) -> None:
        self.level_values = None
        super().drop_fit()

    @kept_for_training()
    def _no_values(self) -> Tensor:
        return torch.zeros(sum(self.grid.levels), dtype=torch.float32)

    def _load_from_state_dict(self, state_dict, prefix, *others):
        """Take over refitted levels. A state dict without them may hold only adapters, so it changes nothing."""
        if f"{prefix}level_values" in state_dict:
            self.level_values = self._no_values()
            self.config = dataclasses.replace(self.config, refitted=True)
        super()._load_from_state_dict(state_dict, prefix, *others)
