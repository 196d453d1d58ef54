"""Nearest-neighbour search over a few thousand to a few million low-dimensional points."""

from .base import NeighborIndex
from .cpu import in_tree_order
from .index import BACKENDS, build_index
from .nearest import NearestPoint, nearest_in_graph, nearest_point

__all__ = [
    "BACKENDS",
    "NearestPoint",
    "NeighborIndex",
    "build_index",
    "in_tree_order",
    "nearest_in_graph",
    "nearest_point",
]
