"""What is compared: a YAML file.

K codes of latents of d dimensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from vpvae_hf.settings import did_you_mean
from vpvae_hf.training.arguments import with_bases
from vpvae_hf.training.config import AudioTrainingConfig, ImageTrainingConfig, TrainingConfig

_CONFIGS: dict[str, type[TrainingConfig]] = {"image": ImageTrainingConfig, "audio": AudioTrainingConfig}
Part = TypeVar("Part")


@dataclass(frozen=True)
class Place:
    """A split of a data set.

    Attributes:
        name: hub id or local path.
        split, config, column: as of `DataConfig`.
        label: what it is called in tables; the name where None.
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
        quantizer: settings with their kind; the size and the dimension are filled in unless given.
        by_size: further settings of the quantizer for some K.
        settings: of training, that change those of the comparison.
        starts_from: a method named before, whose tokenizer of equal seed is gone on from.
        start_size: the K that it was compared at; the same where None.
        codebook_sizes, seeds: where it has fewer, or other ones, than the comparison.
        paper: the paper's name of it, where the paper has it.
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
        modality: "image" or "audio".
        training: a file of settings of all runs.
        settings: that change those of the file.
        latent_dims: d for each K.
        methods: by name.
        seeds: each method is trained once with each.
        out_of_domain: data that is measured but not trained on; None for none.
        output_dir: folder for runs and results.
    """

    modality: str
    training: Path
    settings: dict[str, Any]
    latent_dims: dict[int, int]
    methods: dict[str, Method]
    seeds: tuple[int, ...]
    out_of_domain: Place | None
    output_dir: Path

    @property
    def config_class(self) -> type[TrainingConfig]:
        return _CONFIGS[self.modality]


def read_comparison(file: Path) -> Comparison:
    """Read a comparison; a file that it names is looked for beside it, and it may change another, its `base`.

    Raises:
        FileNotFoundError: no such file.
        ImportError: omegaconf is not installed.
        ValueError: an unknown or missing key, or a value that does not fit; the message names it.
    """
    try:
        from omegaconf import OmegaConf
    except ImportError as error:
        raise ImportError("omegaconf is missing; install it with: pip install 'vpvae_hf[train]'") from error
    content = OmegaConf.merge(*(content for _, content in with_bases(file)))
    values = {"settings": {}, "out_of_domain": None, "seeds": [0], **OmegaConf.to_container(content)}
    known = [each.name for each in fields(Comparison)]
    _check_keys(values, known, str(file), needed=known)
    if values["modality"] not in _CONFIGS:
        raise ValueError(f"{file}: modality must be image or audio, got {values['modality']!r}")
    training = file.parent / values["training"]
    if not training.is_file():
        raise FileNotFoundError(f"no such file: {training}, named as training by {file}")
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
    place = values["out_of_domain"]
    return Comparison(
        modality=values["modality"],
        training=training.resolve(),
        settings=values["settings"],
        latent_dims=latent_dims,
        methods=methods,
        seeds=tuple(values["seeds"]),
        out_of_domain=None if place is None else _part(Place, place, f"{file}: out_of_domain", ["name"]),
        output_dir=Path(values["output_dir"]),
    )


def _method(name: str, values: Any, file: Path, latent_dims: Mapping[int, int]) -> Method:
    method = _part(Method, values, f"{file}: methods.{name}", ["quantizer"])
    if "kind" not in method.quantizer:
        raise ValueError(f"{file}: methods.{name}.quantizer names no kind")
    for size in (*method.by_size, *(method.codebook_sizes or ())):
        if size not in latent_dims:
            raise ValueError(
                f"{file}: methods.{name} has settings of K={size}, but latent_dims has only "
                f"{', '.join(map(str, latent_dims))}"
            )
    return method


def _part(part: type[Part], values: Any, where: str, needed: list[str]) -> Part:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping, got {values!r}")
    _check_keys(values, [each.name for each in fields(part)], where, needed)
    return part(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _check_keys(values: Mapping, known: list[str], where: str, needed: list[str]) -> None:
    for name in values:
        if name not in known:
            raise ValueError(f"{where}: unknown key {name!r}; {did_you_mean(name, known)}")
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
