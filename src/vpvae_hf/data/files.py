"""The former module of `UnreadableFileError`, to be removed with version 0.3."""

from vpvae_hf.unreadable import UnreadableFileError

__all__ = ["UnreadableFileError"]
