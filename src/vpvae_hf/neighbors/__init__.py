"""Exact nearest-neighbour search over a few thousand to a few million low-dimensional points."""

from .index import BACKENDS, NeighborIndex, build_index
from .nearest import nearest_point

__all__ = ["BACKENDS", "NeighborIndex", "build_index", "nearest_point"]
