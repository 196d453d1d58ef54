"""Codebooks and how they are made."""

from .kmeans import KMeansResult, TooFewDistinctError, fit_kmeans
from .nested import fit_nested_kmeans, require_nested_sizes
from .scalar_grid import ScalarGrid, complete_levels, levels_for_codebook_size

__all__ = [
    "KMeansResult",
    "ScalarGrid",
    "TooFewDistinctError",
    "complete_levels",
    "fit_kmeans",
    "fit_nested_kmeans",
    "levels_for_codebook_size",
    "require_nested_sizes",
]
