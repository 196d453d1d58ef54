"""The YAML file that says what is compared, and how. K is the number of codes, d the dimensions of a latent."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from vpvae_hf.modalities import MODALITIES
from vpvae_hf.settings import did_you_mean, installed_with, require, require_count, require_integer
from vpvae_hf.training.config import with_bases

from .columns import COLUMNS

Part = TypeVar("Part")

# The name of the comparison's start, in the methods' `starts_from` and in the names of runs.
START = "start"


@dataclass(frozen=True)
class DataSplit:
    """A split of a data set.

    Attributes:
        name: hub id or local path; None for the training data set.
        split, config, column: as in `DataConfig`.
        label: what it is called in tables.
    """

    name: str | None = None
    split: str = "test"
    config: str | None = None
    column: str | None = None
    label: str = "out of domain"


@dataclass(frozen=True)
class Start:
    """What all methods start from: a tokenizer for each d and seed, trained once.

    Attributes:
        quantizer: the quantizer's settings with its kind; the dimension is filled in.
        settings: training settings that override those of the comparison.
    """

    quantizer: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """How every run is measured, in addition to what its training logs.

    Attributes:
        columns: names in `COLUMNS`.
        split: the split of the training data set that is measured in domain.
        examples: how many images or clips are measured per domain, from the first on; None for all.
        refined_examples: how many of these are measured for refined columns; None for all of these.
        refine_steps: steps of refinement.
        fitted_latents: how many latents codebooks are refitted to, whatever their size.
    """

    columns: tuple[str, ...] = ("continuous", "own", "refitted")
    split: str = "validation"
    examples: int | None = None
    refined_examples: int | None = None
    refine_steps: int = 10
    fitted_latents: int = 262_144

    def __post_init__(self):
        for name in self.columns:
            require(name in COLUMNS, "measure.columns", name, f"among {', '.join(COLUMNS)}")
        for name in ("examples", "refined_examples"):
            require_count(f"measure.{name}", getattr(self, name))
        for name in ("refine_steps", "fitted_latents"):
            require_integer(f"measure.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class Method:
    """A way to quantize.

    Attributes:
        quantizer: the quantizer's settings with its kind; the size and the dimension are filled in unless given.
        by_size: further settings of the quantizer for some K.
        settings: training settings that override those of the comparison.
        starts_from: what training starts from: "start", the default if the comparison has a start; or the name of an
            earlier method, to start from its tokenizer of the same seed and K, or of its only K; None for a new model.
        codebook_sizes, seeds: given if they differ from those of the comparison.
        paper: the paper's name of the method, if the paper has it.
    """

    quantizer: dict[str, Any]
    by_size: dict[int, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    starts_from: str | None = None
    codebook_sizes: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None
    paper: str | None = None


@dataclass(frozen=True)
class Comparison:
    """What is compared, on what.

    Attributes:
        modality: a name in `MODALITIES`, e.g. "image".
        training: a file with the training settings of all runs.
        settings: settings that override those of the file.
        latent_dims: d for each K.
        methods: by name.
        seeds: each method is trained once with each; the same seed means the same start and the same order of the data.
        start: what all methods start from; None for new models.
        measure: how runs are measured.
        reference: the method from which the other methods' differences are computed.
        out_of_domain: data that is measured but not trained on; None for none.
        output_dir: folder for runs and results.
        paper: the paper's metrics, by K and the paper's name of a method, shown next to those that are measured.
    """

    modality: str
    training: Path
    settings: dict[str, Any]
    latent_dims: dict[int, int]
    methods: dict[str, Method]
    seeds: tuple[int, ...]
    start: Start | None
    measure: Measurement
    reference: str
    out_of_domain: DataSplit | None
    output_dir: Path
    paper: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)

    @property
    def domains(self) -> dict[str, DataSplit]:
        """The data that runs are measured on, by its name in the results."""
        inside = DataSplit(split=self.measure.split, label="in domain")
        return {"in_domain": inside} | ({"out_of_domain": self.out_of_domain} if self.out_of_domain else {})

    def size_of_start(self, method: str, codebook_size: int) -> int:
        """The K of the run that a method's run at `codebook_size` starts from, if it starts from another method's."""
        sizes = _sizes(self.methods[self.methods[method].starts_from], self.latent_dims)
        return sizes[0] if len(sizes) == 1 else codebook_size

    def paper_metrics(self, method: str, codebook_size: int) -> dict[str, float]:
        """What the paper measured of a method at one K; empty if it did not."""
        return self.paper.get(codebook_size, {}).get(self.methods[method].paper, {})


def read_comparison(file: Path) -> Comparison:
    """Read a comparison. Paths in it are relative to the file; it may extend another file, which it names as `base`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown or missing key, or a value that does not fit; the message names it.
    """
    with installed_with("'vpvae_hf[train]'"):
        from omegaconf import OmegaConf
    content = OmegaConf.merge(*(content for _, content in with_bases(file)))
    values = {"settings": {}, "out_of_domain": None, "seeds": [0], "start": None, "measure": {}, "paper": None}
    values |= OmegaConf.to_container(content)
    values.setdefault("reference", next(iter(values.get("methods", ())), None))
    _check_keys(Comparison, values, str(file), needed=[each.name for each in fields(Comparison)])
    kind = values["modality"]
    require(kind in MODALITIES, f"{file}: modality", kind, " or ".join(MODALITIES))
    named = {name: file.parent / values[name] for name in ("training", "paper") if values[name] is not None}
    for name, path in named.items():
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}, named as {name} by {file}")
    paper = OmegaConf.to_container(OmegaConf.load(named["paper"])) if "paper" in named else {}
    latent_dims = {int(size): int(dim) for size, dim in values["latent_dims"].items()}
    start = _with_kind(Start, values["start"], f"{file}: start") if values["start"] is not None else None
    methods: dict[str, Method] = {}
    for name, each in values["methods"].items():
        methods[name] = _method(name, each, file, latent_dims, before=({START: None} if start else {}) | methods)
    require(values["reference"] in methods, f"{file}: reference", values["reference"], f"among {', '.join(methods)}")
    split = values["out_of_domain"]
    return Comparison(
        modality=kind,
        training=named["training"].resolve(),
        settings=values["settings"],
        latent_dims=latent_dims,
        methods=methods,
        seeds=tuple(values["seeds"]),
        start=start,
        measure=_part(Measurement, values["measure"], f"{file}: measure"),
        reference=values["reference"],
        out_of_domain=None if split is None else _part(DataSplit, split, f"{file}: out_of_domain"),
        output_dir=Path(values["output_dir"]),
        paper=paper.get(kind, {}),
    )


def _method(
    name: str, values: Any, file: Path, latent_dims: Mapping[int, int], before: Mapping[str, Method | None]
) -> Method:
    where = f"{file}: methods.{name}"
    require(name != START, f"{file}: the name of a method", name, "another: runs of the start have this name")
    if isinstance(values, Mapping):
        values = {"starts_from": START if START in before else None, **values}
    method = _with_kind(Method, values, where)
    if method.starts_from is not None and method.starts_from not in before:
        known = ", ".join(before) or "there is none"
        raise ValueError(f"{where} starts from {method.starts_from!r}, which must be named before it: {known}")
    named = before.get(method.starts_from)
    missing = set(_sizes(method, latent_dims)) - set(_sizes(named, latent_dims)) if named is not None else set()
    if missing and len(_sizes(named, latent_dims)) > 1:
        sizes = ", ".join(map(str, sorted(missing)))
        raise ValueError(
            f"{where} starts from {method.starts_from!r}, which is compared at several K, but not at {sizes}"
        )
    for size in (*method.by_size, *(method.codebook_sizes or ())):
        if size not in latent_dims:
            there = ", ".join(map(str, latent_dims))
            raise ValueError(f"{where} has settings of K={size}, but latent_dims has only {there}")
    return method


def _sizes(method: Method, latent_dims: Mapping[int, int]) -> tuple[int, ...]:
    """The K that a method is compared at."""
    return method.codebook_sizes or tuple(latent_dims)


def _with_kind(part: type[Part], values: Any, where: str) -> Part:
    made = _part(part, values, where, ["quantizer"])
    if "kind" not in made.quantizer:
        raise ValueError(f"{where}.quantizer names no kind")
    return made


def _part(part: type[Part], values: Any, where: str, needed: Collection[str] = ()) -> Part:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping, got {values!r}")
    _check_keys(part, values, where, needed)
    return part(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _check_keys(part: type, values: Mapping, where: str, needed: Collection[str]) -> None:
    known = [each.name for each in fields(part)]
    for name in values:
        if name not in known:
            raise ValueError(f"{where}: unknown key {name!r}; {did_you_mean(name, known)}")
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
