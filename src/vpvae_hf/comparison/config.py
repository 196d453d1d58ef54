"""What is compared: a YAML file. K codes of latents of d dimensions."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from vpvae_hf.modalities import MODALITIES
from vpvae_hf.settings import did_you_mean, installed_with, require
from vpvae_hf.training.config import with_bases

Part = TypeVar("Part")


@dataclass(frozen=True)
class DataSplit:
    """A split of a data set.

    Attributes:
        name: hub id or local path.
        split, config, column: as in `DataConfig`.
        label: what it is called in tables; None for its name.
    """

    name: str
    split: str = "test"
    config: str | None = None
    column: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Method:
    """A way to quantize.

    Attributes:
        quantizer: settings with their kind; the size and the dimension are filled in unless they are given.
        by_size: further settings of the quantizer for some K.
        settings: settings of training that change those of the comparison.
        starts_from: a method named before, whose tokenizer of the same seed training starts from.
        start_size: the K at which that tokenizer was compared; None for the same K.
        codebook_sizes, seeds: given if they differ from those of the comparison.
        paper: the paper's name of the method, if the paper has it.
    """

    quantizer: dict[str, Any]
    by_size: dict[int, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    starts_from: str | None = None
    start_size: int | None = None
    codebook_sizes: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None
    paper: str | None = None


@dataclass(frozen=True)
class Comparison:
    """What is compared, on what.

    Attributes:
        modality: a name in `MODALITIES`, e.g. "image".
        training: a file of settings of all runs.
        settings: settings that change those of the file.
        latent_dims: d for each K.
        methods: by name.
        seeds: each method is trained once with each.
        out_of_domain: data that is measured but not trained on; None for none.
        output_dir: folder for runs and results.
        paper: metrics of the paper for some K and its methods, to be shown next to those that are measured.
    """

    modality: str
    training: Path
    settings: dict[str, Any]
    latent_dims: dict[int, int]
    methods: dict[str, Method]
    seeds: tuple[int, ...]
    out_of_domain: DataSplit | None
    output_dir: Path
    paper: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)

    def paper_metrics(self, method: str, codebook_size: int) -> dict[str, float]:
        """What the paper measured of a method at one K; empty if it did not."""
        return self.paper.get(codebook_size, {}).get(self.methods[method].paper, {})


def read_comparison(file: Path) -> Comparison:
    """Read a comparison. Paths in it are relative to the file; it may change another file, which it names as `base`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown or missing key, or a value that does not fit; the message names it.
    """
    with installed_with("'vpvae_hf[train]'"):
        from omegaconf import OmegaConf
    content = OmegaConf.merge(*(content for _, content in with_bases(file)))
    values = {"settings": {}, "out_of_domain": None, "seeds": [0], "paper": None, **OmegaConf.to_container(content)}
    _check_keys(Comparison, values, str(file), needed=[each.name for each in fields(Comparison)])
    kind = values["modality"]
    require(kind in MODALITIES, f"{file}: modality", kind, " or ".join(MODALITIES))
    named = {name: file.parent / values[name] for name in ("training", "paper") if values[name] is not None}
    for name, path in named.items():
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}, named as {name} by {file}")
    paper = OmegaConf.to_container(OmegaConf.load(named["paper"])) if "paper" in named else {}
    latent_dims = {int(size): int(dim) for size, dim in values["latent_dims"].items()}
    methods: dict[str, Method] = {}
    for name, each in values["methods"].items():
        methods[name] = _method(name, each, file, latent_dims)
        start = methods[name].starts_from
        if start is not None and (start == name or start not in methods):
            before = ", ".join(methods.keys() - {name}) or "there is none"
            raise ValueError(f"{file}: methods.{name} starts from {start!r}, which must be named before it: {before}")
        at = methods[name].start_size
        if at is not None and (start is None or at not in (methods[start].codebook_sizes or latent_dims)):
            raise ValueError(f"{file}: methods.{name} starts from {start!r} at K={at}, which is not compared")
    split = values["out_of_domain"]
    return Comparison(
        modality=kind,
        training=named["training"].resolve(),
        settings=values["settings"],
        latent_dims=latent_dims,
        methods=methods,
        seeds=tuple(values["seeds"]),
        out_of_domain=None if split is None else _part(DataSplit, split, f"{file}: out_of_domain", ["name"]),
        output_dir=Path(values["output_dir"]),
        paper=paper.get(kind, {}),
    )


def _method(name: str, values: Any, file: Path, latent_dims: Mapping[int, int]) -> Method:
    method = _part(Method, values, f"{file}: methods.{name}", ["quantizer"])
    if "kind" not in method.quantizer:
        raise ValueError(f"{file}: methods.{name}.quantizer names no kind")
    for size in (*method.by_size, *(method.codebook_sizes or ())):
        if size not in latent_dims:
            there = ", ".join(map(str, latent_dims))
            raise ValueError(f"{file}: methods.{name} has settings of K={size}, but latent_dims has only {there}")
    return method


def _part(part: type[Part], values: Any, where: str, needed: list[str]) -> Part:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping, got {values!r}")
    _check_keys(part, values, where, needed)
    return part(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _check_keys(part: type, values: Mapping, where: str, needed: list[str]) -> None:
    known = [each.name for each in fields(part)]
    for name in values:
        if name not in known:
            raise ValueError(f"{where}: unknown key {name!r}; {did_you_mean(name, known)}")
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
