"""The model card of a saved pipeline that generates, and its way to the Hub."""

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCardData, hf_hub_url

from vpvae_hf.files import read_json, write_json, write_text

from .card import MARKER, format_number, is_generated, rendered
from .errors import hub_errors
from .privacy import hub_id, without_local_paths
from .push import check_repo_id, ready_repository
from .saved_tokenizer import CARD, RESULTS, weights_set

_INDEX = "model_index.json"
_SAMPLES = ("samples.png", "samples.flac")
_MEASURED = {
    "bits_per_token": "Bits a token, held out",
    "unigram_bits_per_token": "By the codes' frequencies alone",
    "bits_per_pixel": "Bits a pixel",
    "bits_per_second": "Bits a second",
    "tokens": "Tokens that were measured",
    "denoising_error": "Denoising error, held out",
}


def write_pipeline_card(folder: str | os.PathLike, repo_id: str | None = None) -> Path:
    """Write the card of a saved pipeline into its folder; one that somebody wrote or took over is left as it is.

    Args:
        folder: as a generation recipe leaves it, with model_index.json and results.json.
        repo_id: repository that it is for; None while that is not known.

    Raises:
        ValueError: it is no such folder.
    """
    folder = _checked(folder)
    path = folder / CARD
    if path.exists() and not is_generated(path):
        return path
    class_name = read_json(folder / _INDEX)["_class_name"]
    recorded = read_json(folder / RESULTS)
    results = without_local_paths(recorded)
    name = folder.resolve().name if repo_id is None else repo_id
    diffusion = results["method"] == "diffusion"
    image = diffusion or len(results["vocabulary"]["grid"]) == 2
    samples = next((each for each in _SAMPLES if (folder / each).exists()), None)
    if samples is not None and not image and repo_id is not None and "/" in repo_id:
        samples = hf_hub_url(repo_id, samples)
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation" if image else "text-to-audio",
        tags=["vpvae_hf", f"{results['method']}-generation"],
        datasets=[each] if (each := hub_id(recorded["dataset"])) else None,
        base_model=hub_id(recorded["tokenizer"]),
    )
    values = {
        "card_data": data.to_yaml(),
        "marker": MARKER,
        "title": name.split("/")[-1],
        "name": name,
        "samples": samples,
        "results": results,
        "measured": _rows(results),
        "settings": json.dumps(results["settings"], indent=2),
        "format": format_number,
    }
    if diffusion:
        text = rendered("diffusion.md", **values)
    else:
        article = "an" if results["model_type"][0] in "aeiou" else "a"
        masked, vocabulary = results["method"] == "masked", results["vocabulary"]
        words = {"class_name": class_name, "image": image, "masked": masked, "article": article}
        text = rendered("pipeline.md", **values, **words, vocabulary=vocabulary)
    write_text(path, text)
    return path


def write_pipeline_results(folder: str | os.PathLike, results: dict[str, Any], *, repo_id: str | None = None) -> None:
    """Write results.json into a saved pipeline's folder, and the card anew.

    Args:
        results: of a generation recipe.
        repo_id: repository that the card is for; None while that is not known.
    """
    write_json(Path(folder) / RESULTS, results)
    write_pipeline_card(folder, repo_id)


def push_pipeline(
    folder: str | os.PathLike, repo_id: str, *, private: bool | None = None, token: str | None = None
) -> str:
    """Push a saved pipeline with its parts, samples and card, in one commit; gives the web address.

    Args:
        folder: as a generation recipe leaves it.
        repo_id: "owner/name", or "name" for the token's owner. Made where it does not exist.
        private: whether a new repository is private; None for the owner's default.
        token: None for the one of `hf auth login`.

    Raises:
        ValueError: it is no such folder, or the repository's name is malformed.
        PermissionError: the token is refused.
        ConnectionError: the hub cannot be reached or is down.
    """
    folder = _checked(folder)
    check_repo_id(repo_id)
    api = HfApi(token=token)
    with hub_errors(repo_id, doing="push"):
        repo_id = ready_repository(api, repo_id, private)
        write_pipeline_card(folder, repo_id)
        api.create_commit(repo_id, _operations(api, folder, repo_id), commit_message="Upload pipeline")
    return f"{api.endpoint}/{repo_id}"


def _operations(api: HfApi, folder: Path, repo_id: str) -> list:
    there = set(api.list_repo_files(repo_id))
    # Neither hidden files nor what lies in hidden folders.
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    paths = {name.as_posix(): path for name, path in paths.items() if not any(p.startswith(".") for p in name.parts)}
    if is_generated(folder / CARD) and CARD in there and not is_generated(api.hf_hub_download(repo_id, CARD)):
        del paths[CARD]
    # Left there, an index or another format of earlier weights would be loaded in place of the new ones.
    parts = {name.partition("/")[0] for name in paths if "/" in name}
    stale = [name for name in sorted(there - paths.keys()) if name.partition("/")[0] in parts and _is_weights(name)]
    return [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=_public(path)) for name, path in paths.items()),
        *(CommitOperationDelete(path_in_repo=name) for name in stale),
    ]


def _is_weights(name: str) -> bool:
    return weights_set(name.rpartition("/")[2]) is not None


def _checked(folder: str | os.PathLike) -> Path:
    folder = Path(folder)
    for name in (_INDEX, RESULTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no pipeline of a generation recipe: it has no {name}")
    return folder


def _public(path: Path) -> Path | bytes:
    """What of a file is for the public: settings without the paths of this computer."""
    if path.suffix != ".json":
        return path
    return json.dumps(without_local_paths(read_json(path)), indent=2).encode()


def _rows(results: dict) -> list[tuple[str, str]]:
    measured = results["evaluation"] or {}
    bound = " (at most)" if results["method"] == "masked" else ""
    return [
        (label + (bound if name.startswith("bits") else ""), format_number(measured[name]))
        for name, label in _MEASURED.items()
        if name in measured
    ]
