"""Pushes a saved folder to a repository on the Hub, in one commit."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
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
    commit_description: str | None = None,
    tags: Sequence[str] | str = (),
    subfolder: str | None = None,
    allow_unfitted: bool = False,
) -> str:
    """Push a saved tokenizer to the Hub, with a model card.

    Everything is checked before anything is sent. The folder's own files are pushed in one commit; hidden files and
    sub-folders are not pushed, paths in results.json are cut to their last part, and weights of an earlier push are
    replaced. The card is generated again, unless a person wrote the one in the folder or on the Hub. A push that failed
    can be repeated.

    Args:
        folder: as `save_pretrained` writes it; it may also hold results.json, pictures and sounds.
        repo_id: "owner/name", or "name" for the token's owner. It is made if it does not exist.
        private: whether a new repository is private; None for the owner's default.
        token: access token; None for that of `hf auth login`.
        revision: branch to push to, made if it does not exist.
        create_pr: open a pull request instead of pushing to the main branch.
        commit_message, commit_description: title and description of the commit or the pull request.
        tags: tags for the repository's card, in addition to those that it has.
        subfolder: folder of the repository to push into, e.g. for a part of a pipeline. The repository's card, which
            describes the whole, is then neither written nor replaced.
        allow_unfitted: push a tokenizer that has no codes yet.

    Returns:
        The web address of what was pushed.

    Raises:
        FileNotFoundError: there is no such folder, or the repository no longer exists.
        ValueError: the folder holds no saved tokenizer, or one without a fitted codebook; the repository's name is
            malformed; a card's metadata is refused; both revision and create_pr are given; or private is given for a
            repository that is already public.
        PermissionError: the token is refused.
        ConnectionError: the hub cannot be reached or is down.
    """
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

    where = {"private": private, "token": token, "revision": revision, "create_pr": create_pr, "subfolder": subfolder}
    commit = {
        "commit_message": commit_message or f"Upload {saved.class_name}",
        "commit_description": commit_description,
    }
    return _push(ready, repo_id, **where, tags=tags, **commit)


def push_pipeline(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    tags: Sequence[str] | str = (),
    subfolder: str | None = None,
) -> str:
    """Push a saved pipeline with its parts, samples and card, in one commit.

    Arguments and errors are those of `push_folder`.

    Args:
        folder: written by a generation recipe, or by `save_pretrained` of one of this package's pipelines. Hidden
            files and hidden folders are not pushed.
    """
    folder = checked_pipeline(folder)

    def ready(repo_id: str) -> dict[str, Path | bytes]:
        write_pipeline_card(folder, repo_id)
        paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
        return {name.as_posix(): path for name, path in paths.items() if not any(p.startswith(".") for p in name.parts)}

    where = {"private": private, "token": token, "revision": revision, "create_pr": create_pr, "subfolder": subfolder}
    commit = {"commit_message": commit_message or "Upload pipeline", "commit_description": commit_description}
    return _push(ready, repo_id, **where, tags=tags, one_set=True, **commit)


def _push(
    ready: Callable[[str], dict[str, Path | bytes]],
    repo_id: str,
    *,
    private: bool | None,
    token: str | None,
    revision: str | None,
    create_pr: bool,
    subfolder: str | None,
    tags: Sequence[str] | str,
    one_set: bool = False,
    **commit: str | None,
) -> str:
    """Push the files that `ready` returns for the repository's full name, name -> content; returns the web address.

    Args:
        one_set: whether all weights of a folder are those of one model, whatever their variant.
        commit: commit_message and commit_description.
    """
    if create_pr and revision is not None:
        raise ValueError(
            f"create_pr opens a pull request to the main branch, so revision={revision!r} must be left out"
        )
    require_repo_id(repo_id)
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
        if subfolder:
            contents = {f"{subfolder.strip('/')}/{name}": part for name, part in contents.items() if name != CARD}
        there = set(api.list_repo_files(repo_id, revision=revision))
        present = Path(api.hf_hub_download(repo_id, CARD, revision=revision)) if CARD in there else None
        if present is not None and not is_generated(present) and _is_ours(contents.get(CARD)):
            del contents[CARD]
        if tags:
            contents[CARD] = _tagged(contents.get(CARD, present), tags)
        # Earlier weights of the pushed models: their index or another format would be loaded in place of the new ones.
        pushed = {_weights_of(name, one_set) for name in contents} - {None}
        stale = [name for name in there - set(contents) if _weights_of(name, one_set) in pushed]
        # Not `upload_folder`, which may make several commits of a folder.
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, public_content(content)) for name, content in contents.items()),
                *(CommitOperationDelete(name) for name in sorted(stale)),
            ],
            revision=revision,
            create_pr=create_pr,
            **commit,
        )
    place = "/".join(part for part in (revision or ("main" if subfolder else None), subfolder) if part)
    return commit.pr_url or f"{api.endpoint}/{repo_id}" + (place and f"/tree/{place}")


def require_repo_id(repo_id: str) -> None:
    """Raise a ValueError unless `repo_id` is a valid name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} is no repository id; give 'name' or 'owner/name', of at most 96 letters, digits, '-', '_' "
            "and '.', neither '-' nor '.' first or last, no '--' or '..'"
        ) from error


def _is_ours(card: Path | bytes | None) -> bool:
    """Whether this package generated a card; otherwise a person wrote it into the folder."""
    return isinstance(card, bytes) or (card is not None and is_generated(card))


def _tagged(card: Path | bytes | None, tags: Sequence[str] | str) -> bytes:
    """The card with tags in its metadata; a new one for None."""
    tags = [tags] if isinstance(tags, str) else tags
    text = "---\n{}\n---\n" if card is None else card.decode() if isinstance(card, bytes) else card.read_text("utf-8")
    tagged = ModelCard(text)
    present = tagged.data.tags or []
    tagged.data.tags = [*present, *(tag for tag in dict.fromkeys(tags) if tag not in present)]
    return str(tagged).encode()


def _weights_of(name: str, one_set: bool) -> tuple[str, str] | None:
    """The folder of a file and the `weights_set` that it is part of; None if it holds no weights."""
    folder, _, file = name.rpartition("/")
    weights = weights_set(file)
    return None if weights is None else (folder, "" if one_set else weights)


def public_content(content: Path | bytes) -> Path | bytes:
    """The content without local paths."""
    # A text tokenizer's tokenizer.json lists parts of words, such as "/", which are not paths.
    if isinstance(content, bytes) or content.suffix != ".json" or content.name == "tokenizer.json":
        return content
    recorded = read_json(content)
    public = strip_local_paths(recorded)
    return content if public == recorded else json.dumps(public, indent=2).encode()
