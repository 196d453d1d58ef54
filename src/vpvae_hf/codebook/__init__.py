"""Codebooks: K-means for latents of any distribution, a fixed grid for uniform ones."""

from .kmeans import KMeansResult, fit_kmeans
from .scalar_grid import ScalarGrid, levels_for_codebook_size

__all__ = ["KMeansResult", "ScalarGrid", "fit_kmeans", "levels_for_codebook_size"]
