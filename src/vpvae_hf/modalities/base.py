"""What differs between kinds of signals. Each kind is a subclass of `Modality` and a line in `MODALITIES`."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from vpvae_hf.bundled import bundled_or_given
from vpvae_hf.data import Source, Transform, check_readable, code_dtype
from vpvae_hf.losses import Loss
from vpvae_hf.metrics import FeatureFn, MetricFn, ReconstructionQuality, evaluate_reconstruction
from vpvae_hf.metrics.codecs import Codec
from vpvae_hf.models.tokenizer import Tokenizer
from vpvae_hf.tensors import deferred_checks, fetched_late, to_device

from .config import AdversarialConfig, DataConfig, TrainingConfig


class Modality(ABC):
    """A kind of signal: its model and settings, how files are read, what is measured, and how codes are stored.

    A modality has no state. Training, `vpvae fit`, `evaluate`, `tokenize` and `compare` all use it, so that they read
    files in the same way.

    Attributes:
        model_class: the class of its tokenizers.
        config_class: settings of a training run; its `data` decides what the transforms below read.
        train_items: what one file becomes in training, e.g. "segments".
        headline_metrics: curves show the first of these that is measured, the progress bar all that are measured.
        unquantized_metrics: metrics that are also measured without quantization; None for all.
        extra_metrics: metrics that are measured only on request, since they need a network.
        one_by_one: whether items differ in size, so that they are measured one by one.
        batches_decoded: the files of this many batches are decoded before the first of these batches is encoded.
        written_suffixes: suffixes of the files that `write_file` writes, the default one first.
        rate_unit: what `rate` gives, e.g. "bits per pixel".
        takes_validation_share: whether a share of a data set of local files may be set aside for validation.
    """

    model_class: ClassVar[type[Tokenizer]]
    config_class: ClassVar[type[TrainingConfig]]
    train_items: ClassVar[str]
    headline_metrics: ClassVar[tuple[str, ...]]
    unquantized_metrics: ClassVar[tuple[str, ...] | None] = None
    extra_metrics: ClassVar[tuple[str, ...]] = ()
    one_by_one: ClassVar[bool] = False
    batches_decoded: ClassVar[int] = 1
    takes_validation_share: ClassVar[bool] = False
    written_suffixes: ClassVar[tuple[str, ...]]
    rate_unit: ClassVar[str]
    _open: ClassVar[Callable[..., Source]]

    @property
    def library(self) -> str:
        """The library, in addition to torch, whose version results depend on."""
        return self.model_class.hub_entry.library

    @property
    def items(self) -> str:
        """What one file becomes in an evaluation and in files of codes, e.g. "images"."""
        return self.model_class.hub_entry.items

    @abstractmethod
    def new_model(self, config: TrainingConfig) -> Tokenizer:
        """A model to train from the beginning."""

    def build_model(self, config: TrainingConfig) -> Tokenizer:
        """A new model, or the one that `config.model.pretrained` names.

        Quantizer settings without a kind change those of the pretrained model. They are ignored if the decoder alone is
        trained.
        """
        if config.model.pretrained is None:
            return self.new_model(config)
        model = self.model_class.from_pretrained(bundled_or_given(config.model.pretrained), **config.model.hub_location)
        if config.train_only is not None:
            return model
        present = model.quantize.config.without_fit().to_dict()
        wanted = dict(config.quantizer) if "kind" in config.quantizer else {**present, **config.quantizer}
        if wanted != present:
            wanted.pop("fitted", None)
            model.set_quantizer(wanted)
        return model

    @abstractmethod
    def losses(self, config: TrainingConfig, model: Tokenizer) -> Mapping[str, Loss]:
        """The losses that `config.loss_weights` weights, by name."""

    def adversarial(self, config: TrainingConfig, model: Tokenizer) -> tuple[AdversarialConfig, nn.Module] | None:
        """Settings of a discriminator, and the discriminator; None to train without one."""
        return None

    def data_config(self, model: Tokenizer, **given: Any) -> DataConfig:
        """Settings for reading a data set for a saved tokenizer, as the commands need them.

        Args:
            given: fields of the modality's `DataConfig`. A field that it does not have raises an error, unless its
                value is None or False; so a command may pass all options that it has.
        """
        given = {name: value for name, value in given.items() if value is not None and value is not False}
        kind = type(self.config_class().data)
        for name in given:
            if name not in kind.__dataclass_fields__:
                _refuse_option(name, model)
        return kind(**given)

    def open(
        self, data: DataConfig, transform: Transform, *, other_columns: bool = False, validation_share: float = 0.0
    ) -> Source:
        """Open `data.split` of `data.name`, see `open_source`; check that the transform can read its first files."""
        where = {"split": data.split, "config": data.config, "revision": data.revision, "column": data.column}
        if validation_share:
            where["validation_share"] = validation_share
        source = type(self)._open(data.name, **where, streaming=data.streaming, other_columns=other_columns)
        aside = validation_share and data.split == "validation"
        check_readable(source, transform, "; a larger validation_share sets more files aside" if aside else "")
        return source

    @abstractmethod
    def train_transform(self, data: DataConfig, model: Tokenizer) -> Transform:
        """What makes the items that the model is trained on."""

    def fit_transform(self, data: DataConfig, model: Tokenizer) -> Transform:
        """What makes the items that the codebook is fitted to."""
        return self.train_transform(data, model)

    @abstractmethod
    def eval_transform(self, data: DataConfig, model: Tokenizer) -> Transform:
        """What makes the items that are measured or tokenized."""

    def shown_transform(self, data: DataConfig, model: Tokenizer) -> Transform:
        """What makes the items that pictures show, all of one size."""
        return self.eval_transform(data, model)

    @abstractmethod
    def is_random(self, data: DataConfig) -> bool:
        """Whether each pass over the data gives different training items."""

    @abstractmethod
    def metric_fn(self, model: Tokenizer, extra: Collection[str] = ()) -> MetricFn:
        """How reconstructions are measured, with some of `extra_metrics`; an ImportError if a library is missing."""

    def set_features(self, extra: Collection[str]) -> dict[str, FeatureFn]:
        """Features by name, for those `extra_metrics` that compare sets of items instead of single items."""
        return {}

    def codec(self, model: Tokenizer) -> Codec | None:
        """A familiar codec, with rates in `rate_unit`, that `vpvae compare` also measures; None for none.

        Raises:
            CodecUnavailableError: this installation cannot write the codec's files for the model's signals.
        """
        return None

    def lowered_metrics(self, config: TrainingConfig) -> list[str]:
        """Those of `extra_metrics` that are also losses of a run."""
        return [name for name in self.extra_metrics if config.loss_weights.get(name, 0) > 0]

    def evaluate(
        self,
        model: Tokenizer,
        batches: Iterable[Tensor],
        codebook: Tensor | None = None,
        *,
        extra: Collection[str] = (),
        quantized: bool = True,
        unquantized: bool = True,
        across_ranks: bool = False,
        refine_steps: int = 0,
    ) -> ReconstructionQuality:
        """Measure with this modality's metrics, and some of `extra_metrics`; see `evaluate_reconstruction`.

        Args:
            unquantized: whether continuous latents are measured too, by `unquantized_metrics`.
        """
        for name in extra:
            kind = name.partition("/")[0]
            if kind not in self.extra_metrics:
                _refuse_option(kind, model)
        how = {"metric_fn": self.metric_fn(model, extra), "quantized": quantized, "across_ranks": across_ranks}
        how |= {"refine_steps": refine_steps, "frechet": self.set_features(extra)}
        names = self.unquantized_metrics if unquantized else ()
        return evaluate_reconstruction(model, batches, codebook, unquantized=names, **how)

    @abstractmethod
    def code_features(self, data: DataConfig, model: Tokenizer) -> dict[str, Any]:
        """The columns of codes, as `datasets` describes them; "codes" is one of them."""

    def code_rows(
        self,
        blocks: Iterable[list[Tensor]],
        transform: Transform,
        model: Tokenizer,
        batch_size: int,
        refine_steps: int = 0,
    ) -> Iterator[list[dict[str, Any]]]:
        """The values of the columns of `code_features` for each item, block by block; no block may be empty.

        Items are what `transform`, the `eval_transform`, reads. The model is fitted and in eval mode. At most
        `batch_size` items of a block are encoded together, and their codes refined in `refine_steps`; the codes are
        fetched after the next batch has been issued.
        """

        def issued() -> Iterator[tuple[tuple[Tensor, ...], tuple]]:
            for items in blocks:
                rows: dict[int, dict[str, Any]] = {}
                order = self.code_order(items)
                for start in range(0, len(items), batch_size):
                    places = order[start : start + batch_size]
                    with deferred_checks() as checks:  # immediate checks would wait for the previous batch
                        codes = self.encode([items[place] for place in places], transform, model, refine_steps)
                    yield (codes, *checks.bounds), (items, places, rows, checks)

        for (codes, *bounds), (items, places, rows, checks) in fetched_late(issued()):
            checks.raise_failed(bounds=[each.tolist() for each in bounds])
            values = codes.numpy().astype(code_dtype(model.quantize.codebook_size))
            for place, of_item in zip(places, values, strict=True):
                rows[place] = self.code_row(items[place], of_item, model)
            if len(rows) == len(items):
                yield [rows[place] for place in range(len(items))]

    def item_of(self, value: Any, transform: Transform) -> Tensor:
        """The item that `transform` reads from a value in a batch of `datasets` or Ray Data.

        Args:
            value: the bytes of a file, a path, or a mapping with "bytes" or "path"; None, or NaN, which Ray Data gives
                if all values of a batch are missing; or a decoded signal, if the modality takes it.

        Raises:
            UnreadableFileError: the value cannot be read, or is missing.
            TypeError: the value is something else.
        """
        if isinstance(value, bytes | str | os.PathLike):
            value = {"bytes": value} if isinstance(value, bytes) else {"path": os.fspath(value)}
        if isinstance(value, Mapping) and value.keys() & {"bytes", "path"}:
            value = {"bytes": value.get("bytes"), "path": value.get("path")}
        elif isinstance(value, float | np.floating) and np.isnan(value):
            value = None
        elif value is not None:
            raise TypeError(
                f"{type(value).__name__} is no {transform.kind}; give the bytes of a file, its path, or a mapping with "
                "one of them, as a column of `datasets` that is cast to decode=False holds them"
            )
        return transform.read(value, np.random.default_rng(0))

    def code_order(self, items: list[Tensor]) -> Sequence[int]:
        """The places of a block's items in the order in which they are batched."""
        return range(len(items))

    def encode(self, items: list[Tensor], transform: Transform, model: Tokenizer, refine_steps: int = 0) -> Tensor:
        """Codes of a batch, on the model's device: [B, *grid] or [B, *grid, G]; see `Tokenizer.tokenize`."""
        batch = to_device(transform.collate(items), next(model.parameters()).device)
        return model.tokenize(transform.model_input(batch), refine_steps=refine_steps)

    def code_row(self, item: Tensor, codes: np.ndarray, model: Tokenizer) -> dict[str, Any]:
        """The values of an item's columns, from its codes, which `encode` gave, in the dtype of files."""
        return {"codes": codes}

    @abstractmethod
    def code_settings(self, data: DataConfig, model: Tokenizer) -> dict[str, Any]:
        """For JSON: what codes depend on in addition to tokenizer and files, and how much signal a code stands for."""

    @abstractmethod
    def resolution(self, model: Tokenizer) -> str:
        """How much of the signal a code stands for, in a few words."""

    @abstractmethod
    def picture(
        self, rows: list[Tensor], model: Tokenizer, labels: Sequence[str] = (), captions: Sequence[Sequence[str]] = ()
    ) -> np.ndarray:
        """A picture [height, width, 3] uint8 of rows of items [B, ...], the originals first.

        Args:
            labels: what to write before each row; none to write nothing.
            captions: for each row what to write below each of its items; none to write nothing.
        """

    @abstractmethod
    def quality_captions(self, reconstruction: Tensor, original: Tensor, model: Tokenizer) -> list[str]:
        """In a few words how near each of B reconstructions [B, ...] is to its original, quickly measured."""

    @abstractmethod
    def rate(self, model: Tokenizer, bits: float) -> float:
        """Bits per token converted to bits per unit of the signal, in `rate_unit`."""

    @abstractmethod
    def read_suffixes(self) -> frozenset[str]:
        """Suffixes, in lower case, of the files that `read_file` reads."""

    @abstractmethod
    def read_file(self, file: Path, model: Tokenizer) -> tuple[Tensor, dict[str, int]]:
        """A person's own file as a batch of one signal [1, ...] on the CPU, and its size without padding, by name.

        It is converted to what the model takes, whatever its size.

        Raises:
            UnreadableFileError: the file cannot be read, or is too short.
        """

    @abstractmethod
    def cut(self, signal: Tensor, size: Mapping[str, int]) -> Tensor:
        """A signal [1, ...] without padding; `size` is as `read_file` gives it."""

    @abstractmethod
    def write_file(self, path: Path, signal: Tensor, model: Tokenizer) -> None:
        """Write a signal [1, ...], without padding, to a file whose suffix is one of `written_suffixes`."""

    @abstractmethod
    def described(self, size: Mapping[str, int], bits: float) -> tuple[str, str]:
        """A signal's size, and its rate at that many bits, in words: "640 x 480 pixels", "0.220 bits per pixel"."""

    def limit_memory(self, model: Tokenizer) -> None:
        """Make the model process large signals in parts, unless it does so by itself."""
        return

    @abstractmethod
    def parts(self, size: Mapping[str, int], model: Tokenizer) -> int:
        """The number of parts in which a signal is encoded or decoded."""

    @abstractmethod
    def compared(self, original: Tensor, decoded: Tensor, codes: Tensor, model: Tokenizer) -> np.ndarray:
        """A picture [height, width, 3] uint8 of a signal [1, ...] without padding, what was decoded, and its codes."""

    def write_sounds(self, folder: Path, original: Tensor, reconstruction: Tensor, model: Tokenizer) -> None:
        """Write sounds for the model card into a saved tokenizer's folder, if the modality has any."""
        return


def _refuse_option(name: str, model: Tokenizer) -> None:
    option = name.replace("_", "-")
    raise ValueError(f"--{option} has no meaning for {type(model).__name__}; leave it out")
