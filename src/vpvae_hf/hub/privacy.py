"""What of a training run's record is for the public."""

import os
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

# What `datasets.load_dataset` takes for files; none of them is a data set of the Hub.
_FILE_READERS = frozenset(("arrow", "audiofolder", "csv", "imagefolder", "json", "parquet", "text", "webdataset"))


def without_local_paths(value: Any) -> Any:
    """JSON data in which each absolute path is cut to its last part: the rest tells of the computer, not the model."""
    if isinstance(value, dict):
        return {name: without_local_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_local_paths(item) for item in value]
    if isinstance(value, str) and _is_local_path(value):
        return PureWindowsPath(value).name
    return value


def hub_id(name: str | None) -> str | None:
    """The name where it can be a repository of the Hub; None for folders, files, and names of file formats."""
    if name is None or name in _FILE_READERS or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _is_local_path(text: str) -> bool:
    return text.startswith("~") or PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
