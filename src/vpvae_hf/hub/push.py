"""From a saved folder to a repository on the Hub, in one commit."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from vpvae_hf.files import read_json

from .card import checked_pipeline, is_generated, render_card, write_pipeline_card
from .errors import hub_errors
from .saved import CARD, read_saved, strip_local_paths, weights_set


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    allow_unfitted: bool = False,
) -> str:
    """Push a saved tokenizer to the Hub, with a model card.

    All is checked before anything is sent. The folder's own files go up in one commit; hidden files and sub-folders
    stay behind, paths in results.json are cut to their last part, and weights that the repository has from an earlier
    push are replaced. The card is written anew, unless somebody wrote one, in the folder or on the Hub. A push that
    failed can be repeated.

    Args:
        folder: as `save_pretrained` writes it, if need be with results.json, pictures and sounds.
        repo_id: "owner/name", or "name" for the token's owner. It is made if it does not exist.
        private: whether a new repository is private; None for the owner's default.
        token: None for the one of `hf auth login`.
        revision: branch to push to, made if it does not exist.
        create_pr: open a pull request instead of pushing to the main branch.
        allow_unfitted: push a tokenizer that has no codes yet.

    Returns:
        The web address of what was pushed.

    Raises:
        FileNotFoundError: there is no such folder, or the repository is gone.
        ValueError: it is no saved tokenizer or has no fitted codebook, the repository's name is malformed, a card's
            metadata is refused, both revision and create_pr are given, or private is asked of a public repository.
        PermissionError: the token is refused.
        ConnectionError: the hub cannot be reached or is down.
    """
    if create_pr and revision is not None:
        raise ValueError(
            f"create_pr opens a pull request to the main branch, so revision={revision!r} must be left out"
        )
    saved = read_saved(folder)
    if not (saved.quantizer.fitted or allow_unfitted):
        raise ValueError(
            f"{folder} has no fitted codebook, so nobody could get codes from it; run vpvae_hf.fit_codebook and save "
            "again, or push it as it is with allow_unfitted=True (--allow-unfitted)"
        )
    contents: dict[str, Path | bytes] = {file.name: file for file in saved.files}

    def ready(repo_id: str) -> dict[str, Path | bytes]:
        if CARD not in contents or is_generated(contents[CARD]):
            contents[CARD] = render_card(saved, repo_id, revision=revision).encode()
        return contents

    return _push(ready, repo_id, private, token, commit_message or f"Upload {saved.class_name}", revision, create_pr)


def push_pipeline(
    folder: str | os.PathLike, repo_id: str, *, private: bool | None = None, token: str | None = None
) -> str:
    """Push a saved pipeline with its parts, samples and card, in one commit; arguments and errors as of `push_folder`.

    Args:
        folder: as a generation recipe leaves it. Hidden files, and what lies in hidden folders, stay behind.
    """
    folder = checked_pipeline(folder)

    def ready(repo_id: str) -> dict[str, Path | bytes]:
        write_pipeline_card(folder, repo_id)
        paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
        return {name.as_posix(): path for name, path in paths.items() if not any(p.startswith(".") for p in name.parts)}

    return _push(ready, repo_id, private, token, "Upload pipeline")


def _push(
    ready: Callable[[str], dict[str, Path | bytes]],
    repo_id: str,
    private: bool | None,
    token: str | None,
    commit_message: str,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Push what `ready` gives for the repository's whole name, name -> content; gives the web address."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} is no repository id; give 'name' or 'owner/name', of at most 96 letters, digits, '-', '_' "
            "and '.', neither '-' nor '.' first or last, no '--' or '..'"
        ) from error
    api = HfApi(token=token)
    with hub_errors(repo_id, doing="push", revision=revision):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(repo_id).private:
            raise ValueError(
                f"{repo_id} is already public, and private=True makes only new repositories private; make it private "
                "in its settings on the Hub, or push without private"
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        contents = ready(repo_id)
        there = set(api.list_repo_files(repo_id, revision=revision))
        own_card = isinstance(contents[CARD], Path) and not is_generated(contents[CARD])
        if CARD in there and not own_card and not is_generated(api.hf_hub_download(repo_id, CARD, revision=revision)):
            del contents[CARD]
        # Earlier weights of what is pushed: an index or another format of them would be loaded in place of the new.
        pushed = {_weights_of(name) for name in contents} - {None}
        stale = [name for name in there - set(contents) if _weights_of(name) in pushed]
        # Not `upload_folder`, which may make several commits of a folder.
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, _public(content)) for name, content in contents.items()),
                *(CommitOperationDelete(name) for name in sorted(stale)),
            ],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    return commit.pr_url or f"{api.endpoint}/{repo_id}" + ("" if revision is None else f"/tree/{revision}")


def _weights_of(name: str) -> tuple[str, str] | None:
    """Folder and set of weights of a file; None if it holds none. All weights of a pipeline's part are one set."""
    folder, _, file = name.rpartition("/")
    weights = weights_set(file)
    return None if weights is None else (folder, "" if folder else weights)


def _public(content: Path | bytes) -> Path | bytes:
    """The content without the paths of this computer."""
    if isinstance(content, bytes) or content.suffix != ".json":
        return content
    recorded = read_json(content)
    public = strip_local_paths(recorded)
    return content if public == recorded else json.dumps(public, indent=2).encode()
