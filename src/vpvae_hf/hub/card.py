"""The model card of a saved tokenizer: what its files say, and nothing that they do not."""

import json
import math
import os
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_url
from jinja2 import Environment, FunctionLoader, StrictUndefined

from vpvae_hf.files import write_text
from vpvae_hf.metric_labels import metric_label, sort_metrics

from .privacy import hub_id, without_local_paths
from .saved_tokenizer import CARD, PICTURE, SavedTokenizer, read_saved

# A card that has this line is ours to write anew.
MARKER = "<!-- vpvae_hf wrote this card and writes it anew with each push. Delete this line to keep your own text. -->"
_PAPER = "2602.17133"
_METHODS = {
    "vp": "VP-VAE: trained by displacing latents, the codebook fitted to them afterwards",
    "fsp": "FSP: trained with noise on each latent dimension, the codes are a fixed grid",
    "vq": "VQ-VAE: a codebook that is learned in training (arXiv 1711.00937)",
    "simvq": "SimVQ: a frozen random codebook under a linear map that is learned (arXiv 2411.02038)",
    "fsq": "FSQ: each latent dimension is rounded to a fixed grid (arXiv 2309.15505)",
    "token_bridge": "TokenBridge: a variational autoencoder, each dimension cut into bins (arXiv 2503.16430)",
    "none": "none: continuous latents, no codes",
}
_KINDS_OF_PAPER = frozenset(("vp", "fsp"))
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
    "fitted_latents": "Latents it was fitted to",
    "iterations": "Iterations of K-means",
    "distortion": "Mean squared error on them",
    "held_out_latents": "Latents held out",
    "held_out_distortion": "Mean squared error on those",
    "held_out_usage": "Code usage on those",
}


def write_card(folder: str | os.PathLike, repo_id: str | None = None, *, license: str | None = None) -> Path:
    """Write the card of a saved tokenizer into its folder; one that somebody wrote or took over is left as it is.

    Args:
        folder: as `save_pretrained` writes it, with results.json, reconstruction.png, and for audio original.flac and
            reconstruction.flac, where there are such.
        repo_id: repository that it is for; None while that is not known.
        license: as the Hub names it, e.g. "apache-2.0"; None for that of the present card.

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


def is_generated(card: str | os.PathLike) -> bool:
    """Whether a card is one of ours that nobody took over."""
    return MARKER in Path(card).read_text(encoding="utf-8").splitlines()


def render_card(
    saved: SavedTokenizer, repo_id: str | None, *, license: str | None = None, revision: str | None = None
) -> str:
    """The card's text; arguments as of `write_card`, and the branch that it is for."""
    name = saved.folder.resolve().name if repo_id is None else repo_id
    title = name.split("/")[-1]
    return rendered(
        "template.md",
        card_data=_metadata(saved, title, license or _present_license(saved)).to_yaml(),
        marker=MARKER,
        name=name,
        title=title,
        modality=saved.modality,
        method=_method(saved),
        config=saved.config,
        factor=saved.modality.downsampling(saved.config),
        has_codes=saved.has_codes,
        groups=saved.code_groups,
        bits=saved.bits,
        parameters=saved.parameters,
        picture=PICTURE if (saved.folder / PICTURE).exists() else None,
        sounds=_sounds(saved, repo_id, revision),
        training=_rows(saved.results.get("training"), _TRAINING),
        settings=_settings(saved),
        versions=(saved.results.get("training") or {}).get("versions"),
        codebook=_rows(saved.results.get("codebook"), _CODEBOOK),
        metrics=_metric_names(saved),
        evaluations=_evaluations(saved),
        format=format_number,
        paper=_PAPER if _is_of_paper(saved) else None,
    )


def rendered(template: str, **values: Any) -> str:
    """The text of a template of `model_cards`, all of whose values must be given."""
    templates = Environment(
        loader=FunctionLoader(_template), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return templates.get_template(template).render(**values)


def _template(name: str) -> str:
    return (resources.files("vpvae_hf.model_cards") / name).read_text(encoding="utf-8")


def _metadata(saved: SavedTokenizer, title: str, license: str | None) -> ModelCardData:
    training = saved.results.get("training") or {}
    dataset = hub_id(training.get("dataset"))
    results = _eval_results(saved)
    return ModelCardData(
        license=license,
        library_name=saved.modality.library,
        pipeline_tag=saved.modality.pipeline_tag,
        tags=["vpvae_hf", f"{saved.modality.name}-tokenizer", "vq", saved.quantizer["kind"]]
        + ([f"arxiv:{_PAPER}"] if _is_of_paper(saved) else []),
        datasets=None if dataset is None else [dataset],
        base_model=hub_id(training.get("base_model")),
        # Without results it would be written as a field that the Hub does not know.
        model_name=title if results else None,
        eval_results=results or None,
    )


def _eval_results(saved: SavedTokenizer) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=saved.modality.task,
            dataset_type=evaluation["dataset"],
            dataset_name=evaluation["dataset"],
            dataset_split=evaluation["split"],
            metric_type=name,
            metric_name=metric_label(name).heading,
            metric_value=value,
        )
        for evaluation in _evaluations(saved)
        for name, value in evaluation["metrics"].items()
        if value is not None
    ]


def _present_license(saved: SavedTokenizer) -> str | None:
    path = saved.folder / CARD
    return ModelCard.load(path).data.license if path.exists() and is_generated(path) else None


def _method(saved: SavedTokenizer) -> str:
    kind = saved.quantizer["kind"]
    return _METHODS.get(kind, f"of the kind `{kind}`")


def _is_of_paper(saved: SavedTokenizer) -> bool:
    return saved.quantizer["kind"] in _KINDS_OF_PAPER


def _sounds(saved: SavedTokenizer, repo_id: str | None, revision: str | None) -> dict[str, str]:
    """Title -> address of every sound that the folder has."""
    there = {title: name for title, name in saved.modality.sounds.items() if (saved.folder / name).exists()}
    if repo_id is None or "/" not in repo_id:
        return there
    # As cards on the Hub name sounds. A path in the repository is known to work for pictures alone.
    return {title: hf_hub_url(repo_id, name, revision=revision) for title, name in there.items()}


def _rows(record: dict[str, Any] | None, names: dict[str, str]) -> list[tuple[str, str]]:
    record = without_local_paths(record or {})
    return [(label, format_number(record[key])) for key, label in names.items() if record.get(key) is not None]


def _settings(saved: SavedTokenizer) -> str | None:
    settings = (saved.results.get("training") or {}).get("settings")
    return json.dumps(without_local_paths(settings), indent=2) if settings else None


def _evaluations(saved: SavedTokenizer) -> list[dict[str, Any]]:
    """As recorded, figures that are not finite as None: neither the Hub nor a reader has a use for them."""
    return [
        evaluation | {"metrics": {name: _finite(value) for name, value in evaluation["metrics"].items()}}
        for evaluation in without_local_paths(saved.results.get("evaluation") or [])
    ]


def _metric_names(saved: SavedTokenizer) -> dict[str, str]:
    """Key -> label of every metric that some evaluation has, known ones first."""
    measured = {name for evaluation in _evaluations(saved) for name in evaluation["metrics"]}
    return {name: metric_label(name).heading for name in sort_metrics(measured)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def format_number(value: Any) -> str:
    """Four digits of a fraction, thousands apart; None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
