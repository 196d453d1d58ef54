"""The model cards of saved tokenizers and pipelines, which state only what the files contain."""

import json
import math
import os
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_url
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, PackageLoader, StrictUndefined

from vpvae_hf.files import read_json, write_json, write_text
from vpvae_hf.metric_labels import metric_label, metric_notes, sort_metrics

from .contents import PIPELINE_INDEX
from .saved import CARD, CONFIG, PICTURE, RESULTS, SavedTokenizer, read_saved, strip_local_paths

# A card that has this line may be overwritten.
MARKER = "<!-- vpvae_hf wrote this card and writes it anew with each push. Delete this line to keep your own text. -->"
# If this were diffusers or transformers, the Hub would show programs that do not import this package. Without it those
# libraries know neither its models nor its pipelines. The same holds for tasks of `transformers.pipeline`.
_LIBRARY = "vpvae_hf"
_PAPER = "2602.17133"
_SAMPLES = ("samples.png", "samples.flac")
# Names of file formats in `datasets.load_dataset`; none of them is a data set of the Hub.
_FILE_READERS = frozenset(("arrow", "audiofolder", "csv", "imagefolder", "json", "parquet", "text", "webdataset"))
_TRAINING = {
    "dataset": "Data set",
    "dataset_config": "Configuration",
    "split": "Split",
    "column": "Column",
    "steps": "Steps",
    "images_seen": "Images seen",
    "segments_seen": "Segments seen",
    "base_model": "Starting from",
}
_CODEBOOK = {
    "codebook_size": "Codes",
    "metric": "Metric of the errors, and of nearest codes",
    "fitted_latents": "Latents it was fitted to",
    "iterations": "Iterations of K-means",
    "distortion": "Mean squared error on them",
    "held_out_latents": "Latents held out",
    "held_out_distortion": "Mean squared error on those",
    "held_out_usage": "Code usage on those",
}
_GENERATION = {
    "bits_per_token": "Bits per token, held out",
    "unigram_bits_per_token": "Bits per token by the codes' frequencies alone",
    "bits_per_pixel": "Bits per pixel",
    "bits_per_second": "Bits per second",
    "tokens": "Tokens that were measured",
    "denoising_error": "Denoising error, held out",
}


def write_card(folder: str | os.PathLike, repo_id: str | None = None, *, license: str | None = None) -> Path:
    """Write the card of a saved tokenizer into its folder; a card without its marker line is kept.

    Args:
        folder: as `save_pretrained` writes it; it may also hold results.json, reconstruction.png, original.flac and
            reconstruction.flac.
        repo_id: repository that the card is for; None if that is not known.
        license: as the Hub names it, e.g. "apache-2.0"; None keeps that of the present card.

    Returns:
        The path of the card.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is no saved tokenizer, or it has sounds and the repository's name is malformed.
    """
    saved = read_saved(folder)
    path = saved.folder / CARD
    if not path.exists() or is_generated(path):
        write_text(path, render_card(saved, repo_id, license=license))
    return path


def write_results(folder: str | os.PathLike, results: dict[str, Any], *, repo_id: str | None = None) -> None:
    """Write results.json into a saved tokenizer's folder, and the card anew.

    Args:
        results: "training", "codebook" and "evaluation", each of which may be missing.
    """
    write_json(Path(folder) / RESULTS, results)
    write_card(folder, repo_id)


def is_generated(card: str | os.PathLike) -> bool:
    """Whether this package wrote a card, and its marker line is still there."""
    return MARKER in Path(card).read_text(encoding="utf-8").splitlines()


def render_card(
    saved: SavedTokenizer, repo_id: str | None, *, license: str | None = None, revision: str | None = None
) -> str:
    """The card's text. Arguments are those of `write_card`, and `revision` is the branch that the card is for."""
    name = saved.folder.resolve().name if repo_id is None else repo_id
    if license is None and (path := saved.folder / CARD).exists() and is_generated(path):
        license = ModelCard.load(path).data.license
    title, quantizer = name.split("/")[-1], saved.quantizer
    training = saved.results.get("training") or {}
    settings, evaluations = training.get("settings"), _evaluations(saved)
    measured = {metric for evaluation in evaluations for metric in evaluation["metrics"]}
    return _rendered(
        f"{saved.entry.name}.md",
        "template.md",
        card_data=_metadata(saved, title, license, evaluations).to_yaml(),
        name=name,
        title=title,
        **vars(saved),
        loading="" if saved.variant is None else f', variant="{saved.variant}"',
        dtype=saved.variants[saved.variant or ""],
        method=quantizer.description + (f" (arXiv {quantizer.paper})" if quantizer.paper else ""),
        factor=saved.entry.downsampling(saved.config),
        has_codes=quantizer.fitted and quantizer.codebook_size is not None,
        groups=quantizer.code_groups,
        bits=quantizer.code_groups * math.log2(quantizer.codebook_size or 1),
        picture=PICTURE if (saved.folder / PICTURE).exists() else None,
        sounds={
            title: _sound_address(file, repo_id, revision)
            for title, file in saved.entry.sounds.items()
            if (saved.folder / file).exists()
        },
        training=_rows(training, _TRAINING),
        settings=json.dumps(strip_local_paths(settings), indent=2) if settings else None,
        versions=training.get("versions"),
        codebook=_codebook_rows(saved.results.get("codebook")),
        metrics={metric: metric_label(metric).heading for metric in sort_metrics(measured)},
        evaluations=evaluations,
        paper=_PAPER if quantizer.paper == _PAPER else None,
    )


def write_pipeline_card(folder: str | os.PathLike, repo_id: str | None = None) -> Path:
    """Like `write_card`, for a saved pipeline, with its results.json if a generation recipe wrote one."""
    folder = checked_pipeline(folder)
    path = folder / CARD
    if not path.exists() or is_generated(path):
        write_text(path, _render_pipeline_card(folder, repo_id))
    return path


def write_pipeline_results(folder: str | os.PathLike, results: dict[str, Any], *, repo_id: str | None = None) -> None:
    """Write a generation recipe's results.json into a saved pipeline's folder, and the card anew."""
    write_json(Path(folder) / RESULTS, results)
    write_pipeline_card(folder, repo_id)


def checked_pipeline(folder: str | os.PathLike) -> Path:
    """The folder, if it is that of a pipeline over codes, or of a generation recipe; otherwise a ValueError."""
    folder = Path(folder)
    needed = [PIPELINE_INDEX] if _vocabulary(folder) else [PIPELINE_INDEX, RESULTS]
    for name in needed:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no pipeline of a generation recipe: it has no {name}")
    return folder


def _vocabulary(folder: Path) -> dict[str, Any] | None:
    """The vocabulary of a saved pipeline's transformer, as `CodeVocabulary` writes it; None if it has none."""
    config = folder / "transformer" / CONFIG
    return read_json(config).get("code_vocabulary") if config.is_file() else None


def _render_pipeline_card(folder: Path, repo_id: str | None) -> str:
    class_name, vocabulary = read_json(folder / PIPELINE_INDEX)["_class_name"], _vocabulary(folder)
    recorded = read_json(folder / RESULTS) if (folder / RESULTS).is_file() else {}
    results = strip_local_paths(recorded)
    name = folder.resolve().name if repo_id is None else repo_id
    method = results.get("method") or ("masked" if "Masked" in class_name else "autoregressive")
    diffusion, masked = method == "diffusion", method == "masked"
    image = diffusion or len(vocabulary["grid"]) == 2
    known, text = vocabulary or {}, (folder / "text_tokenizer").is_dir()  # vocabularies of older versions have no names
    samples = next((each for each in _SAMPLES if (folder / each).exists()), None)
    if samples is not None and not image:
        samples = _sound_address(samples, repo_id)
    data = ModelCardData(
        library_name=_LIBRARY,
        pipeline_tag=_task(image=image, text=text),
        tags=["diffusers", f"{method}-generation"],
        datasets=[each] if (each := _hub_id(recorded.get("dataset"))) else None,
        base_model=_hub_id(recorded.get("tokenizer")),
    )
    names, of_samples = known.get("condition_names"), results.get("sample_conditions")
    at_most = {key: f"{label} (at most)" for key, label in _GENERATION.items() if key.startswith("bits")}
    return _rendered(
        "diffusion.md" if diffusion else "pipeline.md",
        card_data=data.to_yaml(),
        title=name.split("/")[-1],
        name=name,
        class_name=class_name,
        model_type=None if diffusion else read_json(folder / "transformer" / CONFIG)["model_type"],
        image=image,
        masked=masked,
        samples=samples,
        results=results,
        vocabulary=vocabulary,
        given=_given(known, of_samples, text=text),
        conditions="Ids of texts" if text else "Classes" if names else "Conditions",
        names=names,
        of_samples=[names[each] if names else each for each in of_samples or []],
        measured=_rows(results.get("evaluation"), _GENERATION | at_most if masked else _GENERATION),
        settings=json.dumps(results.get("settings"), indent=2),
    )


def _task(*, image: bool, text: bool) -> str | None:
    """What the Hub calls a pipeline's task."""
    if text:
        return "text-to-image" if image else "text-to-audio"
    return "unconditional-image-generation" if image else None


def _given(vocabulary: dict[str, Any], of_samples: list[int | str] | None, *, text: bool) -> str:
    """The arguments of a call that makes two images or clips, as the card shows it."""
    if not vocabulary.get("condition_size"):
        return "num_images=2"
    if text:  # a recipe records some; training may have cut the longest, and pipelines refuse to cut
        prompt = min(of_samples or ["..."], key=len)
        return f"prompt={json.dumps(prompt, ensure_ascii=False)}, num_images=2"
    names = vocabulary.get("condition_names") or [0]
    return f"class_labels={json.dumps([names[0], names[-1]], ensure_ascii=False)}"


def _rendered(*templates: str, **values: Any) -> str:
    """Fill in the first of these templates of `model_cards` that exists; all of its values must be given."""
    loader = PackageLoader("vpvae_hf.model_cards", "")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.select_template(templates).render(marker=MARKER, format=format_number, **values)


def _hub_id(name: str | None) -> str | None:
    """The name if it can be a repository of the Hub; None for folders, files, and names of file formats."""
    if name is None or name in _FILE_READERS or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _metadata(saved: SavedTokenizer, title: str, license: str | None, evaluations: list) -> ModelCardData:
    training = saved.results.get("training") or {}
    results = [
        EvalResult(
            task_type=saved.entry.task,
            dataset_type=evaluation["dataset"],
            dataset_name=evaluation["dataset"],
            dataset_split=evaluation["split"],
            metric_type=name,
            metric_name=metric_label(name).heading + _codes_of(evaluation),
            metric_value=value,
        )
        for evaluation in evaluations
        for name, value in evaluation["metrics"].items()
        if value is not None
    ]
    return ModelCardData(
        license=license,
        library_name=_LIBRARY,
        tags=[saved.entry.library, f"{saved.entry.name}-tokenizer", "vq", saved.quantizer.kind]
        + ([f"arxiv:{_PAPER}"] if saved.quantizer.paper == _PAPER else []),
        datasets=[each] if (each := _hub_id(training.get("dataset"))) else None,
        base_model=_hub_id(training.get("base_model")),
        # Without results it would be written as a field that the Hub does not know.
        model_name=title if results else None,
        eval_results=results or None,
    )


def _codes_of(evaluation: dict[str, Any]) -> str:
    """Which codes were measured and on how many items, in brackets, if there are several possibilities."""
    size, refined = evaluation.get("codebook_size"), evaluation.get("refine_steps")
    said = [*([f"K = {size}"] if size else []), *(["refined codes"] if refined else [])]
    said += [f"the first {evaluation['limit']}"] if evaluation.get("limit") else []
    return f" ({', '.join(said)})" if said else ""


def _sound_address(name: str, repo_id: str | None, revision: str | None = None) -> str:
    """The address of a sound in a card on the Hub, where a relative path is known to work only for pictures."""
    return hf_hub_url(repo_id, name, revision=revision) if repo_id is not None and "/" in repo_id else name


def _rows(record: dict[str, Any] | None, names: dict[str, str]) -> list[tuple[str, str]]:
    record = strip_local_paths(record or {})
    return [(label, format_number(record[key])) for key, label in names.items() if record.get(key) is not None]


def _codebook_rows(fit: dict[str, Any] | None) -> list[tuple[str, list[str]]]:
    """A row for each label, with a value for each codebook."""
    fits = [dict(_rows(each, _CODEBOOK)) for each in (fit, *(fit or {}).get("others", ()))]
    return [(label, [each.get(label, "") for each in fits]) for label in fits[0]]


def _evaluations(saved: SavedTokenizer) -> list[dict[str, Any]]:
    """As recorded, but values that are not finite are None: they are of no use to the Hub or to a reader."""
    evaluations = strip_local_paths(saved.results.get("evaluation") or [])
    for evaluation in evaluations:
        metrics, steps = evaluation["metrics"].items(), evaluation.get("refine_steps")
        size = evaluation.get("codebook_size")
        evaluation["measured"] = evaluation["split"] + (f", K = {size}" if size else "")
        evaluation["measured"] += f", codes refined in {steps} steps" if steps else ""
        evaluation["measured"] += f", the first {evaluation['limit']}" if evaluation.get("limit") else ""
        evaluation["metrics"] = {k: v if v is not None and math.isfinite(v) else None for k, v in metrics}
        evaluation["notes"] = metric_notes(evaluation["metrics"], evaluation.get("undefined", {}))
    return evaluations


def format_number(value: Any) -> str:
    """Fractions with four significant digits, thousands separated by commas; None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
