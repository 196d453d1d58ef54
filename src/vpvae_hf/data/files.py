"""The former place of `UnreadableFileError`; it goes with version 0.2."""

from vpvae_hf.unreadable import UnreadableFileError

__all__ = ["UnreadableFileError"]
