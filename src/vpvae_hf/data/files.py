"""The former place of `UnreadableFileError`; it goes with version 0.2."""

from .sources import UnreadableFileError

__all__ = ["UnreadableFileError"]
