"""Explains why a tokenizer could not be loaded from a folder or a repository, by what it holds."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx

from .saved import CONFIG, HubEntry, class_of, hub_entry, weights_set

PIPELINE_INDEX = "model_index.json"
_SHOWN_FILES = 5
# Models of diffusers that an AutoencoderVP can start from.
STARTS = {"AutoencoderKL": "from_autoencoder_kl", "VQModel": "from_vq_model"}
_LARGEST_POINTER = 1024  # bytes


@dataclass(frozen=True)
class _Place:
    """A folder or repository: the paths of its files, a function that reads a JSON file, and its git-lfs pointers."""

    files: list[str]
    read: Callable[[str], Any]
    pointers: tuple[str, ...] = ()


def explain_contents(
    name: str | os.PathLike,
    class_name: str,
    entry: HubEntry,
    *,
    weights_file: str,
    subfolder: str | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool | None = None,
) -> Exception | None:
    """Why a folder or repository cannot be loaded as a tokenizer, as an error to raise that says what to do.

    Args:
        class_name, entry: the class of models that was to be loaded, and how the Hub shows it.
        weights_file: what the names of its weights begin with.
        subfolder, variant, use_safetensors, revision, token, local_files_only: what was given to `from_pretrained`.

    Returns:
        None if everything needed is there, or if nothing is known about the place.
    """
    if os.path.isfile(name):
        return _of_file(Path(name), class_name)
    if os.path.isdir(name):
        place = _local(Path(name))
    else:
        place = None if local_files_only else _repository(str(name), revision, token)
    if place is None:
        return None
    try:
        if subfolder:
            place, name = _within(place, subfolder), f"{name}, sub-folder {subfolder!r},"
        if CONFIG not in place.files:
            return _without_config(name, place, class_name)
        config = place.read(CONFIG)
    except ValueError:  # a damaged file, which the library itself reports
        return None
    found = class_of(config)
    own = hub_entry(found)
    # A class derived from one of ours has no entry of its own name.
    if own is not entry and not (own is None and "quantizer" in config):
        return ValueError(_of_other_class(name, found, own, class_name))
    return _without_weights(name, place, weights_file, variant, use_safetensors)


def class_in(folder: str | os.PathLike) -> str | None:
    """The class of the pipeline or the model that is saved in a folder; None if there is none, or for a hub id."""
    for file in (PIPELINE_INDEX, CONFIG):
        if Path(folder, file).is_file():
            return class_of(json.loads(Path(folder, file).read_text(encoding="utf-8")))
    return None


def _local(folder: Path) -> _Place:
    files = [path.relative_to(folder).as_posix() for path in folder.glob("*") if path.is_file()]
    files += [path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_file()]
    pointers = [
        file
        for file in files
        if weights_set(file) is not None
        and (folder / file).stat().st_size < _LARGEST_POINTER
        and (folder / file).read_bytes().startswith(b"version https://git-lfs")
    ]
    return _Place(files, lambda file: json.loads((folder / file).read_text(encoding="utf-8")), tuple(pointers))


def _repository(repo_id: str, revision: str | None, token: str | bool | None) -> _Place | None:
    api = HfApi(token=token)
    try:
        files = api.list_repo_files(repo_id, revision=revision)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, httpx.TransportError):
        return None

    def read(file: str) -> Any:
        return json.loads(Path(api.hf_hub_download(repo_id, file, revision=revision)).read_text(encoding="utf-8"))

    return _Place(files, read)


def _within(place: _Place, subfolder: str) -> _Place:
    start = f"{subfolder.strip('/')}/"
    files = [file.removeprefix(start) for file in place.files if file.startswith(start)]
    return _Place(files, lambda file: place.read(start + file))


def _of_file(file: Path, class_name: str) -> ValueError:
    what = f"{file} is a file, and {class_name}.from_pretrained takes the folder that save_pretrained wrote"
    if (file.parent / CONFIG).exists():
        return ValueError(f"{what}; name {file.parent}")
    if file.suffix == ".gguf":
        return ValueError(f"{what}; GGUF files are of language models; no tokenizer of this package is saved as one")
    return ValueError(
        f"{what}, with a {CONFIG} beside the weights. If the file holds weights, make the model with the settings that "
        "it was trained with, load the weights with its load_state_dict (safetensors.torch.load_file or torch.load "
        "reads them), and save it with save_pretrained"
    )


def _without_config(name: str | os.PathLike, place: _Place, class_name: str) -> Exception:
    if PIPELINE_INDEX in place.files:
        return ValueError(_of_pipeline(name, place.read(PIPELINE_INDEX), class_name))
    if "adapter_config.json" in place.files:
        return ValueError(
            f"{name} holds an adapter of PEFT; load the tokenizer that it was trained on, and then the adapter with "
            "peft.PeftModel.from_pretrained(model, folder)"
        )
    if "random_states_0.pkl" in place.files:
        return ValueError(
            f"{name} is a checkpoint of training, which has no {CONFIG}; resume the run from it with "
            "--resume_from_checkpoint, or load its weights with load_state_dict of a model with the same settings"
        )
    within = [file.rpartition("/")[0] for file in sorted(place.files) if file.endswith(f"/{CONFIG}")]
    ours = [folder for folder in within if hub_entry(class_of(place.read(f"{folder}/{CONFIG}")))]
    if ours:
        return FileNotFoundError(
            f"{name} has no {CONFIG}, but its sub-folder {ours[0]} holds a tokenizer: give subfolder={ours[0]!r}"
        )
    shown = ", ".join(sorted(place.files)[:_SHOWN_FILES]) or "no files"
    more = f" and {len(place.files) - _SHOWN_FILES} more" if len(place.files) > _SHOWN_FILES else ""
    return FileNotFoundError(
        f"{name} holds no saved tokenizer: no {CONFIG} is found in it, but {shown}{more}; name the folder or "
        "repository that save_pretrained or push_to_hub wrote"
    )


def _of_pipeline(name: str | os.PathLike, index: dict[str, Any], class_name: str) -> str:
    parts = {part: value[1] for part, value in index.items() if isinstance(value, list) and value[1]}
    what = f"{name} holds a whole pipeline, of class {index.get('_class_name')}"
    for part, found in parts.items():
        if hub_entry(found) is not None:
            return f"{what}; load its tokenizer with {found}.from_pretrained(..., subfolder={part!r})"
    for part, found in parts.items():
        if found in STARTS and class_name == "AutoencoderVP":
            start = f"AutoencoderVP.{STARTS[found]}(..., subfolder={part!r})"
            return f"{what}; {start} starts a tokenizer from its {part}"
    return f"{what}, in which there is no tokenizer of this package"


def _of_other_class(name: str | os.PathLike, found: str | None, entry: HubEntry | None, class_name: str) -> str:
    if entry is not None:
        return f"{name} holds an {entry.name} tokenizer; load it with {found}.from_pretrained, not {class_name}"
    what = f"{name} holds a model of class {found}, no tokenizer of this package"
    if found in STARTS and class_name == "AutoencoderVP":
        return f"{what}; AutoencoderVP.{STARTS[found]} starts a tokenizer from it"
    return f"{what}; load it with the library that saved it"


def _without_weights(
    name: str | os.PathLike, place: _Place, weights_file: str, variant: str | None, use_safetensors: bool | None
) -> FileNotFoundError | None:
    kinds: dict[str, set[str]] = {}  # variant -> endings
    for file in place.files:
        # transformers reads pickled weights under another name.
        if file.startswith((weights_file, "pytorch_model")) and (found := weights_set(file)) is not None:
            kinds.setdefault(found, set()).add("bin" if ".bin" in file else "safetensors")
    if place.pointers:
        return FileNotFoundError(
            f"{name} was cloned without its weights: {place.pointers[0]} is a pointer of git-lfs; run `git lfs pull` "
            "in it, or load the tokenizer by its id"
        )
    wanted = "" if variant is None else f".{variant}"
    if not kinds:
        return FileNotFoundError(
            f"{name} has a {CONFIG} but no weights ({weights_file}.safetensors); download or save the tokenizer again"
        )
    if wanted not in kinds:
        there = [
            "without a variant (leave variant out)" if not kind else f"variant={kind[1:]!r}" for kind in sorted(kinds)
        ]
        missing = "without a variant" if variant is None else f"of variant={variant!r}"
        return FileNotFoundError(f"{name} has no weights {missing}; there are weights: {', '.join(there)}")
    needed = {True: "safetensors", False: "bin"}.get(use_safetensors)
    if needed is not None and needed not in kinds[wanted]:
        return FileNotFoundError(
            f"{name} has no weights as .{needed}, which use_safetensors={use_safetensors} requires; leave it out"
        )
    return None
