"""Levels of a scalar grid in a configuration: given, or derived from a codebook size.

Shapes: levels L_1..L_d, K = L_1 * ... * L_d codes.
"""

import math
from collections.abc import Sequence

from vpvae_hf.codebook import levels_for_codebook_size
from vpvae_hf.settings import is_integer, require

from .base import QuantizerConfig


def complete_levels(config: QuantizerConfig) -> None:
    """Derive `levels` where they are None, then `codebook_size` and `latent_dim` from them, in place.

    Raises:
        ValueError: levels that are not integers of at least 2, or that contradict a given dimension or size.
    """
    for name in ("codebook_size", "latent_dim"):
        value = getattr(config, name)
        require(value is None or (is_integer(value) and value >= 1), name, value, "a positive integer")
    if config.levels is None:
        derived = levels_for_codebook_size(config.codebook_size or 1024, config.latent_dim)
        object.__setattr__(config, "levels", derived)
        object.__setattr__(config, "codebook_size", math.prod(derived))
    require(isinstance(config.levels, Sequence), "levels", config.levels, "a list of integers")
    levels = tuple(config.levels)
    valid = len(levels) > 0 and all(is_integer(level) and level >= 2 for level in levels)
    require(valid, "levels", config.levels, "integers of at least 2, one for each dimension")
    if config.latent_dim not in (None, len(levels)):
        raise ValueError(
            f"levels {levels} have {len(levels)} dimensions but latent_dim={config.latent_dim}; "
            "give one level for each latent dimension, or leave latent_dim out"
        )
    if config.codebook_size not in (None, math.prod(levels)):
        raise ValueError(
            f"levels {levels} make {math.prod(levels)} codes but codebook_size={config.codebook_size}; "
            "leave one of the two out"
        )
    object.__setattr__(config, "levels", levels)
    object.__setattr__(config, "latent_dim", len(levels))
    object.__setattr__(config, "codebook_size", math.prod(levels))
