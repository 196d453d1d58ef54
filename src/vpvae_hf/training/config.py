"""What a training run is told: typed settings with defaults, from YAML files and the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"]


def _option(default: Any, description: str) -> Any:
    """A field with a line for --help."""
    if isinstance(default, Mapping | list):
        return field(default_factory=lambda: type(default)(default), metadata={"help": description})
    return field(default=default, metadata={"help": description})


@dataclass
class ModelConfig:
    """Which model to train; a new one unless a start is named."""

    architecture: dict[str, Any] = _option({}, "arguments of a new model (AutoencoderVP, VPCodecConfig)")
    pretrained: str | None = _option(None, "folder or hub id of a tokenizer to go on from")
    subfolder: str | None = _option(None, "of the folder or hub id")
    revision: str | None = _option(None, "branch, tag or commit of the hub id")


@dataclass
class ImageModelConfig(ModelConfig):
    """Which image tokenizer to train."""

    from_autoencoder_kl: str | None = _option(None, "folder or hub id of a diffusers AutoencoderKL to start from")

    def __post_init__(self):
        if self.pretrained and self.from_autoencoder_kl:
            raise ValueError("model.pretrained and model.from_autoencoder_kl name two starts; give one of them")


@dataclass
class DataConfig:
    """Which data to train and validate on."""

    name: str | None = _option(None, "data set: hub id or local path")
    config: str | None = _option(None, "configuration (subset) of the data set")
    revision: str | None = _option(None, "branch, tag or commit of the data set")
    split: str = _option("train", "split to train on")
    column: str | None = _option(None, "column that holds the images or the audio; found by its type where null")
    streaming: bool = _option(True, "read the data set while training, without downloading it first")
    shuffle_buffer: int = _option(1000, "examples that each loader worker shuffles at once")
    workers: int = _option(2, "loader processes for each rank")
    validation_name: str | None = _option(None, "data set to validate on; the training one where null")
    validation_config: str | None = _option(None, "configuration of validation_name")
    validation_column: str | None = _option(None, "column of validation_name; found by its type where null")
    validation_split: str | None = _option("validation", "split to validate on; null to measure nothing")
    validation_examples: int | None = _option(
        512, "images or clips for validation during training; null for all. The end uses all"
    )

    def __post_init__(self):
        _require(self.workers >= 0, "data.workers", self.workers, "at least 0")
        _require(self.shuffle_buffer >= 1, "data.shuffle_buffer", self.shuffle_buffer, "at least 1")
        examples = self.validation_examples
        _require(examples is None or examples >= 1, "data.validation_examples", examples, "at least 1, or null")


@dataclass
class ImageDataConfig(DataConfig):
    """Which images to train and validate on."""

    size: int = _option(256, "side of a training crop, pixels")
    shortest_side: int | None = _option(256, "images are scaled to it; null for their own size")
    crop: Literal["random", "center"] = _option("center", "where crops are taken")
    flip: bool = _option(False, "mirror half of the images")
    validation_size: int | None = _option(None, "side of a validation crop, pixels; as in training where null")

    def __post_init__(self):
        super().__post_init__()
        _require(self.size >= 1, "data.size", self.size, "at least 1")
        size = self.validation_size
        _require(size is None or size >= 1, "data.validation_size", size, "at least 1, or null")


@dataclass
class AudioDataConfig(DataConfig):
    """Which audio to train and validate on."""

    segment_s: float = _option(1.0, "length of a training segment, seconds; rounded to whole codes")
    resample: bool = _option(False, "convert files of another sampling rate; otherwise they are an error")
    downmix: bool = _option(False, "average the channels of files that have several; otherwise they are an error")
    validation_examples: int | None = _option(
        64, "clips for validation during training; null for all. The end uses all"
    )

    def __post_init__(self):
        super().__post_init__()
        _require(self.segment_s > 0, "data.segment_s", self.segment_s, "positive")


@dataclass
class AdversarialConfig:
    """A patch discriminator; off unless weighted, as in the paper."""

    weight: float = _option(0.0, "weight of the adversarial loss")
    start_step: int = _option(0, "step from which on it is used")
    learning_rate: float = _option(1e-4, "of the discriminator")
    channels: int = _option(64, "width of the discriminator's first layer")
    layers: int = _option(3, "strided layers of the discriminator")

    def __post_init__(self):
        _require(self.weight >= 0, "adversarial.weight", self.weight, "at least 0")


@dataclass
class CodebookConfig:
    """How the codebook is fitted when training has ended."""

    latents_per_code: int = _option(256, "fresh latents to fit each code to")
    seeding: Literal["rounds", "k-means++"] = _option("rounds", "of K-means")


@dataclass
class TrainingConfig:
    """A training run, from data to a saved tokenizer; a run is one of its two kinds below."""

    output_dir: str | None = _option(None, "folder for checkpoints, metrics, pictures and the tokenizer")
    overwrite_output_dir: bool = _option(False, "start anew in a folder that holds another run, which is deleted")
    resume_from_checkpoint: str | None = _option(None, "a checkpoint's folder, or latest")
    model: ModelConfig = field(default_factory=ModelConfig)
    quantizer: dict[str, Any] = _option(
        {}, "settings with their kind; without a kind they change those of the model that is gone on from"
    )
    data: DataConfig = field(default_factory=DataConfig)
    train_only: Literal["decoder"] | None = _option(
        None, "decoder: encoder, quantizer and codebook of model.pretrained stay, its decoder learns to read the codes"
    )
    losses: dict[str, float] = _option({}, "weight of each reconstruction loss; l1 alone where empty")
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    max_train_steps: int = _option(100_000, "optimizer steps")
    train_batch_size: int = _option(8, "examples for each rank and forward pass")
    gradient_accumulation_steps: int = _option(1, "forward passes for each optimizer step")
    learning_rate: float = _option(1e-4, "the highest")
    lr_scheduler: _Schedule = _option("cosine", "decay of the learning rate")
    lr_warmup_steps: int = _option(500, "steps in which the learning rate rises")
    adam_beta1: float = _option(0.9, "of AdamW")
    adam_beta2: float = _option(0.99, "of AdamW")
    adam_weight_decay: float = _option(1e-4, "of AdamW")
    max_grad_norm: float = _option(1.0, "gradients are scaled down to this norm")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = _option(None, "as accelerate is configured where null")
    gradient_checkpointing: bool = _option(False, "save memory by computing activations twice")
    torch_compile: bool = _option(False, "compile encoder and decoder")
    use_ema: bool = _option(False, "publish a moving average of the weights")
    ema_decay: float = _option(0.999, "of the moving average")
    seed: int = _option(0, "of weights, data order, perturbations and codebook")
    logging_steps: int = _option(10, "steps that a line of metrics.jsonl averages over")
    validation_steps: int = _option(2000, "steps between validations")
    validation_pictures: int = _option(8, "images or clips shown at each validation")
    checkpointing_steps: int = _option(2000, "steps between checkpoints")
    checkpoints_total_limit: int | None = _option(3, "newest checkpoints that are kept; null for all")
    report_to: list[str] = _option(["tensorboard"], "trackers known to accelerate; an empty list for none")
    push_to_hub: bool = _option(False, "upload the tokenizer at the end")
    hub_model_id: str | None = _option(None, "repository, e.g. name/tokenizer")
    hub_private: bool | None = _option(None, "whether a new repository is private")

    def __post_init__(self):
        positive = (
            "max_train_steps",
            "train_batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "validation_steps",
            "checkpointing_steps",
        )
        for name in positive:
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "positive")
        for name in ("lr_warmup_steps", "validation_pictures"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        limit = self.checkpoints_total_limit
        _require(limit is None or limit >= 1, "checkpoints_total_limit", limit, "at least 1, or null")
        _require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "in [0, 1)")
        if self.train_only is not None and self.model.pretrained is None:
            raise ValueError(
                f"train_only={self.train_only} goes on from a fitted tokenizer; name one with --model.pretrained"
            )
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub needs a repository; add --hub_model_id NAME/REPOSITORY")

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss by its name."""
        return self.losses or {"l1": 1.0}


@dataclass
class ImageTrainingConfig(TrainingConfig):
    """A training run of an image tokenizer."""

    model: ImageModelConfig = field(default_factory=ImageModelConfig)
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    losses: dict[str, float] = _option({}, "weight of each reconstruction loss: l1, l2, lpips; l1 alone where empty")
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)


@dataclass
class AudioTrainingConfig(TrainingConfig):
    """A training run of an audio tokenizer."""

    data: AudioDataConfig = field(default_factory=AudioDataConfig)
    losses: dict[str, float] = _option(
        {}, "weight of each reconstruction loss: l1, l2, stft, whisper; l1 alone where empty"
    )
    whisper: str = _option("openai/whisper-base", "folder or hub id of the Whisper model of the loss whisper")


def _require(holds: bool, name: str, value: Any, valid: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {valid}, got {value}")
