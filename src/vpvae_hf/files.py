"""Writes files and folders so that they hold either the complete new content or their old content."""

import contextlib
import glob
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from vpvae_hf import distributed
from vpvae_hf.settings import nearest_name

_COMPARED_NAMES = 1000


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """A new file's path next to `path`; the file moves to `path` if the block succeeds and is removed if it fails.

    The file gets the mode that the umask gives, whatever wrote it. Ranks of a job may write the same file at once.

    Args:
        path: its folder is made if it does not exist.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the process id, so that a run that is started again overwrites what a killed one left.
    aside = path.with_name(f".{path.name}.{distributed.rank()}.partial")
    try:
        usual = _usual_mode(aside)
        yield aside
        _set_mode(aside, usual)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8 atomically."""
    with write_atomically(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file; a damaged one raises a ValueError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON ({error}); save or download it again") from error


def local_path(name: str | os.PathLike, suffixes: Collection[str] = ()) -> Path | None:
    """The existing file or folder of that name; None if the name can only be a repository of a hub.

    Args:
        name: "~" at its beginning is the user's home.
        suffixes: of files, in lower case; a hub id does not end in one.

    Raises:
        FileNotFoundError: there is no such file or folder, and the name cannot be that of a repository.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    text = os.fspath(name)
    path = Path(os.path.expanduser(text))
    if path.exists():
        return path
    if isinstance(name, str) and path.suffix.lower() not in suffixes:
        with contextlib.suppress(HFValidationError):
            validate_repo_id(text)
            return None
    if "://" in text:
        raise FileNotFoundError(f"{text} is an address; download it and name the file or folder")
    if glob.has_magic(text):
        raise FileNotFoundError(f"there is no file or folder {text}; name a folder or one file, not a pattern")
    near = _nearest_entry(path)
    raise FileNotFoundError(f"there is no file or folder {text}" + (f"; did you mean {near}?" if near else ""))


@contextlib.contextmanager
def hint_at_local_path(name: str | os.PathLike) -> Iterator[None]:
    """A context for a search on a hub that adds to its errors which local file or folder the name may mean."""
    try:
        yield
    except (FileNotFoundError, ConnectionError) as error:
        path = Path(name)
        near = _nearest_entry(path) if path.parent.is_dir() and not path.exists() else None
        if near is None:
            raise
        kind = ConnectionError if isinstance(error, ConnectionError) else FileNotFoundError
        raise kind(f"{error}. Or did you mean {near}, which is on this computer?") from error


def _nearest_entry(path: Path) -> Path | None:
    """The entry that is spelt most like the first part of a path that does not exist; None if there is none."""
    while not path.parent.exists():
        path = path.parent
    try:
        there = os.listdir(path.parent)
    except OSError:
        return None
    # To compare more would take long.
    near = nearest_name(path.name, there) if len(there) <= _COMPARED_NAMES else None
    return None if near is None else path.parent / near


def same_place(one: str, other: str) -> bool:
    """Whether two names are equal, or name the same existing file or folder."""
    paths = [os.path.expanduser(each) for each in (one, other)]
    return one == other or (all(map(os.path.exists, paths)) and os.path.samefile(*paths))


def require_folder(path: str | os.PathLike) -> None:
    """Raise a FileExistsError if the path of a folder that is to be written is a file."""
    if Path(path).exists() and not Path(path).is_dir():
        raise FileExistsError(f"{path} is a file; name a folder")


def claim_output_folder(output: Path, *, overwrite: bool) -> None:
    """Raise a FileExistsError if a command may not write into a folder: it is a file, or it has files and `overwrite`
    is not set.
    """
    require_folder(output)
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise FileExistsError(f"{output} exists and is not empty; use --overwrite, or another folder with --output")


def open_to_usual_readers(folder: str | os.PathLike) -> None:
    """Give the safetensors files within a folder the mode of new files; safetensors writes them for the owner alone."""
    files = list(Path(folder).rglob("*.safetensors"))
    usual = _usual_mode(Path(folder, f".mode.{distributed.rank()}"))
    for file in files:
        _set_mode(file, usual)


def _usual_mode(new: Path) -> int:
    """The mode that the umask, or the access list of the folder, gives a new file; `new` is made and removed."""
    new.unlink(missing_ok=True)
    new.touch()
    mode = stat.S_IMODE(new.stat().st_mode)
    new.unlink()
    return mode


def _set_mode(file: Path, mode: int) -> None:
    # Only where it differs: some file systems have one mode for all files, and refuse to change it.
    if stat.S_IMODE(file.stat().st_mode) != mode:
        file.chmod(mode)


@contextlib.contextmanager
def staged_folder(target: str | os.PathLike, obsolete: str | None = None) -> Iterator[str]:
    """A new folder within `target`; its files move up into `target` if the block succeeds, and are deleted if it fails.

    Args:
        target: made if it does not exist.
        obsolete: regular expression; files of `target` with such a name that have no new version are removed at the
            end, all others stay.
    """
    require_folder(target)
    target = Path(target)
    is_new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    # Within the target: the folder above it may be on another file system, or not writable.
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
    try:
        yield str(staging)
        open_to_usual_readers(staging)
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
