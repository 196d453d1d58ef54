"""Codebooks and how they are made."""

from .kmeans import KMeansResult, fit_kmeans
from .latent_chunks import LatentShards
from .scalar_grid import ScalarGrid, complete_levels, levels_for_codebook_size

__all__ = ["KMeansResult", "LatentShards", "ScalarGrid", "complete_levels", "fit_kmeans", "levels_for_codebook_size"]
