"""From a saved folder to a repository on the Hub, in one commit."""

import json
import os

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .card import is_generated, render_card
from .errors import hub_errors
from .privacy import without_local_paths
from .saved_tokenizer import CARD, CONFIG, RESULTS, SavedTokenizer, read_saved, weights_set


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
        folder: as `save_pretrained` writes it, with results.json, pictures and sounds where there are such.
        repo_id: "owner/name", or "name" for the token's owner. Made where it does not exist.
        private: whether a new repository is private; None for the owner's default.
        token: None for the one of `hf auth login`.
        revision: branch to push to, made where it does not exist.
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
    check_repo_id(repo_id)
    if create_pr and revision is not None:
        raise ValueError(
            f"create_pr opens a pull request to the main branch, so revision={revision!r} must be left out"
        )
    saved = read_saved(folder)
    if not (saved.is_fitted or allow_unfitted):
        raise ValueError(
            f"{folder} has no fitted codebook, so nobody could get codes from it; run vpvae_hf.fit_codebook and save "
            "again, or push it as it is with allow_unfitted=True (--allow-unfitted)"
        )
    api = HfApi(token=token)
    with hub_errors(repo_id, doing="push", revision=revision):
        repo_id = ready_repository(api, repo_id, private)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            _operations(api, saved, repo_id, revision),
            commit_message=commit_message or f"Upload {saved.class_name}",
            revision=revision,
            create_pr=create_pr,
        )
    return commit.pr_url or f"{api.endpoint}/{repo_id}" + ("" if revision is None else f"/tree/{revision}")


def ready_repository(api: HfApi, repo_id: str, private: bool | None) -> str:
    """Make the repository where there is none; gives its name with its owner.

    Raises:
        ValueError: it is public and is to be private.
    """
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.repo_info(repo_id).private:
        raise ValueError(
            f"{repo_id} is already public, and private=True makes only new repositories private; make it private "
            "in its settings on the Hub, or push without private"
        )
    return repo_id


def check_repo_id(repo_id: str) -> None:
    """Raise a ValueError for what is no repository's name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} is no repository id; give 'name' or 'owner/name', of at most 96 letters, digits, '-', '_' "
            "and '.', neither '-' nor '.' first or last, no '--' or '..'"
        ) from error


def _operations(api: HfApi, saved: SavedTokenizer, repo_id: str, revision: str | None) -> list:
    there = set(api.list_repo_files(repo_id, revision=revision))
    contents = {file.name: file for file in saved.files}
    if RESULTS in contents:
        contents[RESULTS] = json.dumps(without_local_paths(saved.results), indent=2).encode()
    if (config := without_local_paths(saved.config)) != saved.config:
        contents[CONFIG] = json.dumps(config, indent=2).encode()
    if CARD not in contents or is_generated(contents[CARD]):
        contents[CARD] = render_card(saved, repo_id, revision=revision).encode()
        if CARD in there and not is_generated(api.hf_hub_download(repo_id, CARD, revision=revision)):
            del contents[CARD]
    pushed = {weights_set(name) for name in contents} - {None}
    # Left there, an index or another format of earlier weights would be loaded in place of the new ones.
    stale = sorted(name for name in there - contents.keys() if weights_set(name) in pushed)
    return [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()),
        *(CommitOperationDelete(path_in_repo=name) for name in stale),
    ]
