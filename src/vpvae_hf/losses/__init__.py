"""Losses by name."""

from .reconstruction import RECONSTRUCTION_LOSSES

__all__ = ["RECONSTRUCTION_LOSSES"]
