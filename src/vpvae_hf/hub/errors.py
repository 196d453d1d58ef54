"""Errors of the connection to a hub, each in one sentence that says what to do."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

_TOKEN = "log in with `hf auth login`, or give token=, and see that the token is valid and has the right"


@contextmanager
def hub_errors(repo_id: str | os.PathLike, *, doing: Literal["load", "push"], revision: str | None = None) -> Iterator:
    """A context that replaces a failure of the hub by an error that names repository, endpoint and remedy.

    Libraries wrap such failures, so the causes of an error are searched, too. Other errors do not change.

    Raises:
        ConnectionError: the hub cannot be reached, is down, or turns requests away.
        PermissionError: the hub refuses the token.
        FileNotFoundError: there is no such repository, revision or file.
    """
    handled = sys.exception()
    try:
        yield
    except Exception as error:
        cause = error
        # An exception that the caller was already handling did not cause this one.
        while cause is not None and cause is not handled:
            explained = _explained(cause, f"cannot {doing} {repo_id}", doing, revision)
            if explained is not None:
                raise explained from error
            cause = cause.__cause__ or cause.__context__
        raise


def _explained(error: BaseException, what: str, doing: str, revision: str | None) -> OSError | None:
    endpoint = constants.ENDPOINT
    not_cached = isinstance(error, EntryNotFoundError) and error.__cause__ is None
    # transformers may raise the second for the first.
    if isinstance(error, OfflineModeIsEnabled) or (not_cached and constants.HF_HUB_OFFLINE):
        return ConnectionError(f"{what}: HF_HUB_OFFLINE is set, and the cache does not have it; unset HF_HUB_OFFLINE")
    if isinstance(error, httpx.TransportError):
        return ConnectionError(
            f"{what}: {endpoint} cannot be reached ({error}); check the network and HF_ENDPOINT, then try again"
        )
    if isinstance(error, HFValidationError):
        return FileNotFoundError(f"{what}: there is no such folder, and it is no repository id (owner/name) either")
    if isinstance(error, HfHubHTTPError):
        return _explained_answer(error, f"{what}: {endpoint}", doing, revision)
    if not_cached:
        return FileNotFoundError(f"{what}: the cache does not have it; load it without local_files_only")
    return None


def _explained_answer(error: HfHubHTTPError, what: str, doing: str, revision: str | None) -> OSError | None:
    status = error.response.status_code
    if status >= 500 or status == 429:
        return ConnectionError(f"{what} answered {status}, so it is down or overloaded; try again later")
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{what} has no revision {revision!r} of it; name a branch, a tag or a commit")
    if isinstance(error, EntryNotFoundError):
        return FileNotFoundError(
            f"{what} has the repository, but {error.response.url.path} is not in it; push it again"
        )
    if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        nor = ", and there is no folder of that name" if doing == "load" else ""
        return FileNotFoundError(
            f"{what} has no such repository, or it is private and the token does not open it{nor}; "
            f"check the name, or {_TOKEN} to read it"
        )
    if status in (401, 403):
        right = "to write there" if doing == "push" else "to read it"
        return PermissionError(f"{what} refused the token ({status}, {error.server_message}); {_TOKEN} {right}")
    return None
