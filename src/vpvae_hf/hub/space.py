"""Pushes the page of `vpvae app` as a Space of the Hub: its files, this package's source, and local tokenizers."""

import importlib.metadata
import importlib.resources
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from vpvae_hf.bundled import bundled_or_given
from vpvae_hf.files import local_path
from vpvae_hf.settings import installed_with

from .errors import hub_errors
from .push import public_content, require_repo_id
from .saved import read_saved

_PACKAGE, _TOKENIZERS = "vpvae_hf", "tokenizers"
_EXTRAS = ("app", "audio", "entropy")


def push_space(
    repo_id: str, tokenizers: Sequence[str | os.PathLike], *, private: bool | None = None, token: str | None = None
) -> str:
    """Push a Space that serves the page of `vpvae app` for some tokenizers; an earlier one is replaced in one commit.

    Args:
        repo_id: "owner/name", or "name" for the token's owner. It is made if it does not exist.
        tokenizers: folders, which are pushed into the Space, or ids on the Hub, which it loads.
        private: whether a new Space is private; None for the owner's default.
        token: access token; None for that of `hf auth login`.

    Returns:
        The web address of the Space.

    Raises:
        FileNotFoundError: there is no such tokenizer.
        ValueError: a folder holds no saved tokenizer or has no fitted codebook, or the Space's name is malformed.
        PermissionError: the token is refused.
        ConnectionError: the Hub cannot be reached or is down.
    """
    require_repo_id(repo_id)
    api = HfApi(token=token)
    contents, places, ids = _source(), [], []
    for name in tokenizers:
        folder = local_path(bundled_or_given(name))
        if folder is None:
            with hub_errors(name, doing="load"):
                api.model_info(str(name))
            ids.append(str(name))
            places.append(str(name))
            continue
        saved = read_saved(folder)
        if not saved.quantizer.fitted:
            raise ValueError(f"{folder} has no fitted codebook, so its page has no codes to show; run vpvae fit first")
        place = f"{_TOKENIZERS}/{folder.resolve().name}"
        if place in places:
            raise ValueError(f"two tokenizers are called {folder.resolve().name}; rename one of their folders")
        contents |= {f"{place}/{file.name}": public_content(file) for file in saved.files}
        places.append(place)
    contents |= _page(places, ids)
    with hub_errors(repo_id, doing="push"):
        made = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        there = api.list_repo_files(made.repo_id, repo_type="space")
        ours = (f"{_PACKAGE}/", f"{_TOKENIZERS}/")
        stale = [name for name in there if name.startswith(ours) and name not in contents]
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        api.create_commit(made.repo_id, operations, repo_type="space", commit_message="Upload the page of vpvae app")
    return f"{api.endpoint}/spaces/{made.repo_id}"


def _page(places: Sequence[str], ids: Sequence[str]) -> dict[str, bytes]:
    """The files of recipes/space, filled in."""
    files = importlib.resources.files("vpvae_hf.recipes") / "space"
    fills = {
        "app.py": (r"^TOKENIZERS = .*$", f"TOKENIZERS = {json.dumps(list(places))}"),
        "requirements.txt": (r"^vpvae_hf.*$", "\n".join(_requirements())),
        "README.md": (r"^models: .*$", f"models: {json.dumps(list(ids))}"),
    }
    filled = {}
    for name, (line, text) in fills.items():
        first, _, rest = re.split(f"({line})", (files / name).read_text(encoding="utf-8"), maxsplit=1, flags=re.M)
        filled[name] = f"{first}{text}{rest}".encode()
    return filled


def _requirements() -> list[str]:
    """The requirements of this package with the extras of the page, as the installed version declares them."""
    with installed_with("packaging"):
        from packaging.requirements import Requirement
    needed = {}
    for requirement in map(Requirement, importlib.metadata.requires(_PACKAGE) or []):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in _EXTRAS):
            requirement.marker = None
            needed[requirement.name] = str(requirement)
    return sorted(needed.values())


def _source() -> dict[str, Path | bytes]:
    """This package's source, so that the Space runs the same version."""
    root = Path(__file__).parents[1]
    found = (file.relative_to(root) for file in sorted(root.rglob("*.py")))
    files = [file for file in found if file.parts[0] not in ("model_cards", "recipes")]
    return {f"{_PACKAGE}/{file.as_posix()}": root / file for file in files}
