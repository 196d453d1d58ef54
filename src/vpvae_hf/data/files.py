"""Files as they come in a data set's rows: mappings of "bytes" and "path"."""

from collections.abc import Mapping


class UnreadableFileError(ValueError):
    """A file that is missing, corrupt or of another kind. Streams skip and count it."""


def name_of(file: Mapping) -> str:
    """For messages."""
    return file["path"] or "a file without a name"
