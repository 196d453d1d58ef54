"""Folders whose old content survives a failed save."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged_folder(target: str | os.PathLike, obsolete: str | None = None) -> Iterator[str]:
    """A new folder within `target` whose files move up into it when the block ends well, and vanish when it fails.

    Args:
        target: made where it does not exist.
        obsolete: regular expression; files of `target` with such a name that have no new version are removed in the
            end, all others stay.

    Raises:
        NotADirectoryError: the target is a file.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"cannot save into {target}: it is a file; name a folder")
    is_new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    # Within the target: beside it may lie another file system, or a folder that is not ours to write to.
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
    try:
        yield str(staging)
        written = {file.name for file in staging.iterdir()}
        for name in sorted(written):
            os.replace(staging / name, target / name)
        for file in list(target.iterdir()):
            if obsolete and file.name not in written and re.fullmatch(obsolete, file.name):
                file.unlink()
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if is_new and not any(target.iterdir()):
            target.rmdir()
