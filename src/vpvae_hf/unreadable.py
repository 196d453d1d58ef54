"""Files that cannot be read: the error for a file, and the count of skipped files."""

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

_log = logging.getLogger(__name__)

_TOLD_REASONS = 3
# This many in a row are no longer skipped: the data are of another kind, or cannot be reached.
MOST_UNREADABLE = 1000


class UnreadableFileError(ValueError):
    """A file that is missing, corrupt or of another kind. Streams skip and count it."""


def name_of(file: Mapping[str, Any]) -> str:
    """What messages call a file."""
    return file["path"] or "a file without a name"


def unreadable(file: Mapping[str, Any], error: Exception, what: str = "") -> UnreadableFileError:
    """The error for a file that its decoder could not read: `what` failed, followed by the decoder's reason."""
    # Messages of other errors, such as a KeyError, say little without the error's type.
    reason = str(error) if isinstance(error, OSError | ValueError) else ""
    name, cause = name_of(file), error.__cause__
    if reason in name:  # empty, or only the address, e.g. if it cannot be reached
        reason = repr(error) if cause is None else f"{type(error).__name__}, {str(cause) or repr(cause)}"
    return UnreadableFileError(f"{name}: {what}{reason}")


class SkippedFiles:
    """Counts the unreadable files of a data set, and keeps the first reasons.

    Args:
        what: what messages call the files, e.g. "images of NAME".
        repeatedly: whether the same file may be counted in each of several passes.

    Attributes:
        count: the number of files counted so far.
        reasons: the first three reasons that differ.
    """

    def __init__(self, what: str, *, repeatedly: bool = False):
        self.count, self.reasons, self._what, self._repeatedly = 0, [], what, repeatedly

    def add(self, reasons: Sequence[str], count: int) -> None:
        """Add `count` files, and the reasons of the first of them."""
        self.count += count
        self.reasons = list(dict.fromkeys([*self.reasons, *reasons]))[:_TOLD_REASONS]

    def tell(self) -> None:
        """Log the count and the first reasons, if there are any."""
        if self.count:
            skipped = f"{self.count} unreadable {self._what}"
            if self._repeatedly:
                skipped = f"unreadable {self._what} {self.count} time{'s' * (self.count > 1)}, each file once per pass"
            _warn_once(f"skipped {skipped}, the first: {'; '.join(self.reasons)}")

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.count, "reasons": self.reasons}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.reasons = state["skipped"], state.get("reasons", [])  # older states have no reasons


@cache
def _warn_once(message: str) -> None:
    # Validations read the same files again and again.
    _log.warning(message)
