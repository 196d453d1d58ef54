"""What a training run is told: typed settings with defaults, from YAML files and the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from vpvae_hf.settings import require

_Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"]


def option(default: Any, description: str) -> Any:
    """A field with a line for --help."""
    if isinstance(default, Mapping | list):
        return field(default_factory=lambda: type(default)(default), metadata={"help": description})
    return field(default=default, metadata={"help": description})


@dataclass
class ModelConfig:
    """Which model to train; a new one unless a start is named."""

    architecture: dict[str, Any] = option({}, "arguments of a new model (AutoencoderVP, VPCodecConfig)")
    pretrained: str | None = option(None, "folder or hub id of a tokenizer to go on from")
    subfolder: str | None = option(None, "of the folder or hub id")
    revision: str | None = option(None, "branch, tag or commit of the hub id")


@dataclass
class ImageModelConfig(ModelConfig):
    """Which image tokenizer to train."""

    from_autoencoder_kl: str | None = option(None, "folder or hub id of a diffusers AutoencoderKL to start from")

    def __post_init__(self):
        if self.pretrained and self.from_autoencoder_kl:
            raise ValueError("model.pretrained and model.from_autoencoder_kl name two starts; give one of them")


@dataclass
class DataConfig:
    """Which data to train and validate on."""

    name: str | None = option(None, "data set: hub id or local path")
    config: str | None = option(None, "configuration (subset) of the data set")
    revision: str | None = option(None, "branch, tag or commit of the data set")
    split: str = option("train", "split to train on")
    column: str | None = option(None, "column that holds the images or the audio; found by its type where null")
    streaming: bool = option(True, "read the data set while training, without downloading it first")
    shuffle_buffer: int = option(1000, "examples that each loader worker shuffles at once")
    workers: int = option(2, "loader processes for each rank")
    validation_name: str | None = option(None, "data set to validate on; the training one where null")
    validation_config: str | None = option(None, "configuration of validation_name")
    validation_column: str | None = option(None, "column of validation_name; found by its type where null")
    validation_split: str | None = option("validation", "split to validate on; null to measure nothing")
    validation_examples: int | None = option(
        512, "images or clips for validation during training; null for all. The end uses all"
    )

    def __post_init__(self):
        require(self.workers >= 0, "data.workers", self.workers, "at least 0")
        require(self.shuffle_buffer >= 1, "data.shuffle_buffer", self.shuffle_buffer, "at least 1")
        examples = self.validation_examples
        require(examples is None or examples >= 1, "data.validation_examples", examples, "at least 1, or null")


@dataclass
class ImageDataConfig(DataConfig):
    """Which images to train and validate on."""

    size: int = option(256, "side of a training crop, pixels")
    shortest_side: int | None = option(256, "images are scaled to it; null for their own size")
    crop: Literal["random", "center"] = option("center", "where crops are taken")
    flip: bool = option(False, "mirror half of the images")
    validation_size: int | None = option(None, "side of a validation crop, pixels; as in training where null")

    def __post_init__(self):
        super().__post_init__()
        require(self.size >= 1, "data.size", self.size, "at least 1")
        size = self.validation_size
        require(size is None or size >= 1, "data.validation_size", size, "at least 1, or null")


@dataclass
class AudioDataConfig(DataConfig):
    """Which audio to train and validate on."""

    segment_s: float = option(1.0, "length of a training segment, seconds; rounded to whole codes")
    resample: bool = option(False, "convert files of another sampling rate; otherwise they are an error")
    downmix: bool = option(False, "average the channels of files that have several; otherwise they are an error")
    validation_examples: int | None = option(64, "clips for validation during training; null for all. The end uses all")

    def __post_init__(self):
        super().__post_init__()
        require(self.segment_s > 0, "data.segment_s", self.segment_s, "positive")


@dataclass
class AdversarialConfig:
    """A patch discriminator; off unless weighted, as in the paper."""

    weight: float = option(0.0, "weight of the adversarial loss")
    start_step: int = option(0, "step from which on it is used")
    learning_rate: float = option(1e-4, "of the discriminator")
    channels: int = option(64, "width of the discriminator's first layer")
    layers: int = option(3, "strided layers of the discriminator")

    def __post_init__(self):
        require(self.weight >= 0, "adversarial.weight", self.weight, "at least 0")


@dataclass
class CodebookConfig:
    """How the codebook is fitted when training has ended."""

    latents_per_code: int = option(256, "fresh latents to fit each code to")


@dataclass
class RunConfig:
    """How anything is trained: where to, in how many steps, with what optimizer."""

    _FEWEST_STEPS: ClassVar[int] = 1

    output_dir: str | None = option(None, "folder for checkpoints, metrics, pictures and what was trained")
    overwrite_output_dir: bool = option(False, "start anew in a folder that holds another run, which is deleted")
    resume_from_checkpoint: str | None = option(None, "a checkpoint's folder, or latest")
    max_train_steps: int = option(100_000, "optimizer steps")
    train_batch_size: int = option(8, "examples for each rank and forward pass")
    gradient_accumulation_steps: int = option(1, "forward passes for each optimizer step")
    learning_rate: float = option(1e-4, "the highest")
    lr_scheduler: _Schedule = option("cosine", "decay of the learning rate")
    lr_warmup_steps: int = option(500, "steps in which the learning rate rises")
    adam_beta1: float = option(0.9, "of AdamW")
    adam_beta2: float = option(0.99, "of AdamW")
    adam_weight_decay: float = option(1e-4, "of AdamW")
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(None, "as accelerate is configured where null")
    gradient_checkpointing: bool = option(False, "save memory by computing activations twice")
    seed: int = option(0, "of weights, data order and all that is drawn in training")
    logging_steps: int = option(10, "steps that a line of figures averages over")
    validation_steps: int = option(2000, "steps between validations")
    checkpointing_steps: int = option(2000, "steps between checkpoints")
    checkpoints_total_limit: int | None = option(3, "newest checkpoints that are kept; null for all")
    report_to: list[str] = option(["tensorboard"], "trackers known to accelerate; an empty list for none")
    push_to_hub: bool = option(False, "upload what was trained at the end")
    hub_model_id: str | None = option(None, "repository, e.g. name/tokenizer")
    hub_private: bool | None = option(None, "whether a new repository is private")

    def __post_init__(self):
        fewest = self._FEWEST_STEPS
        require(self.max_train_steps >= fewest, "max_train_steps", self.max_train_steps, f"at least {fewest}")
        positive = (
            "train_batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "validation_steps",
            "checkpointing_steps",
        )
        for name in positive:
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "positive")
        require(self.lr_warmup_steps >= 0, "lr_warmup_steps", self.lr_warmup_steps, "at least 0")
        limit = self.checkpoints_total_limit
        require(limit is None or limit >= 1, "checkpoints_total_limit", limit, "at least 1, or null")
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub needs a repository; add --hub_model_id NAME/REPOSITORY")


@dataclass
class LoopConfig(RunConfig):
    """What this package's own training loop is told beside."""

    use_ema: bool = option(False, "publish a moving average of the weights")
    ema_decay: float = option(0.999, "of the moving average")

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "in [0, 1)")


@dataclass
class TrainingConfig(LoopConfig):
    """A training run, from data to a saved tokenizer; a run is one of its two kinds below.

    Of no steps, it fits and measures what it would go on from.
    """

    _FEWEST_STEPS: ClassVar[int] = 0

    model: ModelConfig = field(default_factory=ModelConfig)
    quantizer: dict[str, Any] = option(
        {}, "settings with their kind; without a kind they change those of the model that is gone on from"
    )
    data: DataConfig = field(default_factory=DataConfig)
    train_only: Literal["decoder"] | None = option(
        None, "decoder: encoder, quantizer and codebook of model.pretrained stay, its decoder learns to read the codes"
    )
    losses: dict[str, float] = option({}, "weight of each reconstruction loss; l1 alone where empty")
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    torch_compile: bool = option(False, "compile encoder and decoder")
    validation_pictures: int = option(8, "images or clips shown at each validation")

    def __post_init__(self):
        super().__post_init__()
        require(self.validation_pictures >= 0, "validation_pictures", self.validation_pictures, "at least 0")
        starts = (self.model.pretrained, getattr(self.model, "from_autoencoder_kl", None))
        if self.max_train_steps == 0 and not any(starts):
            raise ValueError("max_train_steps=0 goes on from a tokenizer; name one with --model.pretrained")
        if self.train_only is not None and self.model.pretrained is None:
            raise ValueError(
                f"train_only={self.train_only} goes on from a fitted tokenizer; name one with --model.pretrained"
            )

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss by its name."""
        return self.losses or {"l1": 1.0}


@dataclass
class ImageTrainingConfig(TrainingConfig):
    """A training run of an image tokenizer."""

    model: ImageModelConfig = field(default_factory=ImageModelConfig)
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    losses: dict[str, float] = option({}, "weight of each reconstruction loss: l1, l2, lpips; l1 alone where empty")
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)


@dataclass
class AudioTrainingConfig(TrainingConfig):
    """A training run of an audio tokenizer."""

    data: AudioDataConfig = field(default_factory=AudioDataConfig)
    losses: dict[str, float] = option(
        {}, "weight of each reconstruction loss: l1, l2, stft, whisper; l1 alone where empty"
    )
    whisper: str = option("openai/whisper-base", "folder or hub id of the Whisper model of the loss whisper")
