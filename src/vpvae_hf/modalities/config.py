"""Settings of training that all modalities share: dataclasses with a default and a line of help for each field."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from vpvae_hf.files import same_place
from vpvae_hf.settings import Metric, require, require_count

# More workers hold many blocks of examples in memory, and a GPU seldom needs them.
_MOST_WORKERS = 8
_Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"]


def option(default: Any, description: str) -> Any:
    """A field with a line for --help."""
    if isinstance(default, Mapping | list):
        return field(default_factory=lambda: type(default)(default), metadata={"help": description})
    return field(default=default, metadata={"help": description})


def loss_help(names: Iterable[str]) -> str:
    """The --help text about the reconstruction losses that a modality has."""
    return f"weights of reconstruction losses ({', '.join(names)}), merged with the files'; 0 removes one; none: l1"


@dataclass
class ModelConfig:
    """Which model to train: a new one unless `pretrained` or the like names a start."""

    architecture: dict[str, Any] = option({}, "arguments of a new model, as AutoencoderVP or VPCodecConfig takes them")
    pretrained: str | None = option(None, "folder or hub id of a tokenizer to start from")
    subfolder: str | None = option(None, "subfolder of that folder or repository")
    revision: str | None = option(None, "branch, tag or commit of the hub id")

    @property
    def start(self) -> str | None:
        """Folder or hub id of the model that training starts from; None for a new one."""
        return self.pretrained

    @property
    def hub_location(self) -> dict[str, str]:
        """Where in the folder or repository the start lies, as `from_pretrained` takes it."""
        where = {"subfolder": self.subfolder, "revision": self.revision}
        return {name: value for name, value in where.items() if value is not None}


@dataclass
class DataConfig:
    """Which data to train and validate on."""

    name: str | None = option(None, "data set: hub id or local path")
    config: str | None = option(None, "configuration (subset) of the data set")
    revision: str | None = option(None, "branch, tag or commit of the data set")
    split: str = option("train", "split to train on")
    column: str | None = option(None, "column that holds the images or the audio; null: the only one of that type")
    streaming: bool = option(True, "read the data set while training, without downloading it first")
    shuffle_buffer: int = option(1000, "examples that each loader worker shuffles at once")
    workers: int | None = option(
        None,
        "loader processes per rank; null: one for each core of the rank, 8 at most. The order of data depends on it",
    )
    validation_name: str | None = option(None, "data set to validate on; null: the training one")
    validation_config: str | None = option(None, "configuration of validation_name")
    validation_column: str | None = option(None, "column of validation_name; null: the only one of that type")
    validation_split: str | None = option("validation", "split to validate on; null to measure nothing")
    validation_share: float = option(
        0.05, "share of the files that is the split validation, if a local folder has no splits"
    )
    validation_examples: int | None = option(
        512, "images or clips for validation during training; null: all. The final evaluation uses all"
    )

    def __post_init__(self):
        require(self.workers is None or self.workers >= 0, "data.workers", self.workers, "at least 0, or null")
        require(self.shuffle_buffer >= 1, "data.shuffle_buffer", self.shuffle_buffer, "at least 1")
        require_count("data.validation_examples", self.validation_examples)
        require(0 <= self.validation_share < 1, "data.validation_share", self.validation_share, "in [0, 1)")

    @property
    def loader_workers(self) -> int:
        """`workers`; by default the cores that this process may use, divided among the machine's ranks, 8 at most."""
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return min(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))), _MOST_WORKERS)

    @property
    def share_set_aside(self) -> float:
        """The share of a local folder without splits that is its split "validation"; 0 if that split is not used."""
        asked = self._validates_on_itself and "validation" in (self.validation_split or "").split("+")
        return self.validation_share if asked else 0.0

    @property
    def validation(self) -> "DataConfig":
        """The same settings, with the validation split in place of the training split."""
        if self._validates_on_itself:
            return replace(self, split=self.validation_split)
        where = {"config": self.validation_config, "column": self.validation_column, "revision": None}
        where |= {"name": self.validation_name, "validation_name": None, "validation_share": 0.0}
        return replace(self, **where, split=self.validation_split)

    @property
    def _validates_on_itself(self) -> bool:
        return self.validation_name is None or same_place(self.validation_name, self.name)


@dataclass
class AdversarialConfig:
    """A discriminator. Its weight is 0 by default: the paper trains without one."""

    weight: float = option(0.0, "weight of the adversarial loss")
    feature_matching: float = option(
        0.0, "weight of the distance between the discriminator's features, relative to adversarial.weight"
    )
    start_step: int = option(0, "the first step that uses the discriminator")
    learning_rate: float = option(1e-4, "learning rate of the discriminator")

    def __post_init__(self):
        for name in ("weight", "feature_matching"):
            require(getattr(self, name) >= 0, f"adversarial.{name}", getattr(self, name), "at least 0")


@dataclass
class CodebookConfig:
    """How the codebook is fitted when training has ended."""

    sizes: list[int] | None = option(
        None, "sizes of the codebooks to fit, the first of which is selected; default: quantizer.codebook_size alone"
    )
    nested: bool = option(False, "nest the codebooks: codes of a larger one can be cut to codes of a smaller one")
    latents_per_code: int = option(256, "fresh latents to fit to, per code of the largest codebook")
    metric: Metric = option(
        "euclidean", "distance between latents: euclidean, or decoder: by how much the decoder's output changes"
    )
    start: bool = option(
        False, "vq, simvq: start the learned codebook from one that is fitted to the starting model's latents"
    )
    refit: bool = option(
        False, "also fit kinds that have codes without a fit: a codebook to vq and simvq, levels to fsp and fsq"
    )

    def __post_init__(self):
        require(self.latents_per_code >= 1, "codebook.latents_per_code", self.latents_per_code, "at least 1")


@dataclass
class RunConfig:
    """How a model is trained: output folder, steps, optimizer."""

    _FEWEST_STEPS: ClassVar[int] = 1

    output_dir: str | None = option(None, "folder for checkpoints, metrics, pictures and the trained model")
    overwrite_output_dir: bool = option(False, "delete the run that the folder holds, and start anew")
    resume_from_checkpoint: str | None = option(None, "folder of a checkpoint to continue from; latest: the newest one")
    max_train_steps: int = option(100_000, "optimizer steps")
    train_batch_size: int = option(8, "examples per rank and forward pass")
    gradient_accumulation_steps: int = option(1, "forward passes per optimizer step")
    learning_rate: float = option(1e-4, "the highest learning rate")
    lr_scheduler: _Schedule = option("cosine", "decay of the learning rate")
    lr_warmup_steps: int = option(500, "steps in which the learning rate rises")
    adam_beta1: float = option(0.9, "AdamW's beta1")
    adam_beta2: float = option(0.99, "AdamW's beta2")
    adam_weight_decay: float = option(1e-4, "AdamW's weight decay")
    max_grad_norm: float = option(1.0, "largest norm of the gradients; larger ones are scaled down to it")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "null: as accelerate is configured; if it is not, bf16 on a CUDA GPU that supports it; no: float32"
    )
    gradient_checkpointing: bool = option(False, "save memory by computing activations twice")
    seed: int = option(0, "seed of the weights, the order of the data, and all random numbers of training")
    logging_steps: int = option(10, "steps that a row of metrics averages over")
    validation_steps: int = option(2000, "steps between validations")
    checkpointing_steps: int = option(2000, "steps between checkpoints")
    checkpoints_total_limit: int | None = option(3, "how many of the newest checkpoints are kept; null: all")
    report_to: Any = option(["tensorboard"], "trackers known to accelerate, e.g. tensorboard,wandb; all; or none")
    push_to_hub: bool = option(False, "upload the trained model at the end")
    hub_model_id: str | None = option(None, "repository, e.g. name/tokenizer")
    hub_private: bool | None = option(None, "whether a new repository is private")

    def __post_init__(self):
        self.report_to = _tracker_names(self.report_to)
        counts = ("train_batch_size", "gradient_accumulation_steps")
        intervals = ("logging_steps", "validation_steps", "checkpointing_steps")
        least = {"max_train_steps": self._FEWEST_STEPS, "lr_warmup_steps": 0, **dict.fromkeys((*counts, *intervals), 1)}
        for name, fewest in least.items():
            require(getattr(self, name) >= fewest, name, getattr(self, name), f"at least {fewest}")
        for name in ("learning_rate", "max_grad_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "positive")
        require_count("checkpoints_total_limit", self.checkpoints_total_limit)
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub needs a repository; add --hub_model_id NAME/REPOSITORY")


def _tracker_names(given: Any) -> list[str]:
    """Names from a list of them, from words between commas, or from None or "none"."""
    parts = [] if given is None else [given] if isinstance(given, str) else given
    valid = isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts)
    require(valid, "report_to", given, "names of trackers, all, or none")
    names = [name.strip().lower() for part in parts for name in part.split(",")]
    return list(dict.fromkeys(name for name in names if name not in ("", "none")))


@dataclass
class LoopConfig(RunConfig):
    """`RunConfig` with the settings of this package's own training loop."""

    use_ema: bool = option(False, "save a moving average of the weights as the trained model")
    ema_decay: float = option(0.999, "decay of the moving average")

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "in [0, 1)")


@dataclass
class TrainingConfig(LoopConfig):
    """A training run of a tokenizer; each modality has its own subclass.

    With `max_train_steps=0` nothing is trained; the codebook is refitted and the starting model is evaluated.
    """

    _FEWEST_STEPS: ClassVar[int] = 0

    model: ModelConfig = field(default_factory=ModelConfig)
    quantizer: dict[str, Any] = option(
        {}, "the quantizer's kind and settings; without a kind they change the quantizer of model.pretrained"
    )
    data: DataConfig = field(default_factory=DataConfig)
    train_only: Literal["decoder"] | None = option(
        None, "decoder: keep encoder, quantizer and codebook of model.pretrained, and train its decoder on the codes"
    )
    losses: dict[str, float] = option({}, loss_help(()))
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    torch_compile: bool | None = option(
        None, "compile encoder and decoder for training; null: on a CUDA GPU, if triton is installed"
    )
    validation_pictures: int = option(8, "images or clips shown at each validation")

    def __post_init__(self):
        super().__post_init__()
        require(self.validation_pictures >= 0, "validation_pictures", self.validation_pictures, "at least 0")
        if self.max_train_steps == 0 and self.model.start is None:
            raise ValueError("max_train_steps=0 needs a tokenizer to start from; name one with --model.pretrained")
        for name in ("start", "refit"):
            if getattr(self.codebook, name) and self.train_only is not None:
                raise ValueError(
                    f"train_only={self.train_only} keeps the codes as they are; codebook.{name} must be false"
                )
        if self.train_only is not None and self.model.pretrained is None:
            raise ValueError(
                f"train_only={self.train_only} starts from a fitted tokenizer; name one with --model.pretrained"
            )

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss by its name."""
        return self.losses or {"l1": 1.0}
