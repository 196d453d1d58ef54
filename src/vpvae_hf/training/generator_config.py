"""What a training run of a transformer over codes is told."""

from dataclasses import dataclass, field
from typing import Any

from vpvae_hf.training.config import RunConfig, option, require


@dataclass
class GeneratorModelConfig:
    """Which transformer to train over codes; a new one unless a start is named."""

    type: str = option("llama", "model type of transformers, e.g. llama, gpt2, qwen2; bert or modernbert where masked")
    config: dict[str, Any] = option({}, "arguments of its config; ids and positions follow from the codes")
    pretrained: str | None = option(None, "folder or hub id of a model to go on from")


@dataclass
class GeneratorDataConfig:
    """Which codes to train and validate on."""

    tokens: str | None = option(None, "folder that `vpvae tokenize` wrote, to train on")
    validation_tokens: str | None = option(None, "another, of the split to validate on; null to measure nothing")
    condition_column: str | None = option(None, "column of whole numbers that conditions the codes, such as a class")
    drop_condition: float = option(0.1, "share of the examples whose condition is left out, for guidance")
    window: int | None = option(None, "tokens of a sequence of audio; the longest clip's where null")

    def __post_init__(self):
        require(0 <= self.drop_condition <= 1, "data.drop_condition", self.drop_condition, "in [0, 1]")
        require(self.window is None or self.window >= 1, "data.window", self.window, "at least 1, or null")


@dataclass
class GeneratorConfig(RunConfig):
    """A training run of a transformer over codes; a run is one of its two kinds below."""

    model: GeneratorModelConfig = field(default_factory=GeneratorModelConfig)
    data: GeneratorDataConfig = field(default_factory=GeneratorDataConfig)
    tokenizer: str | None = option(None, "folder or hub id of the tokenizer; where null the one that made the codes")
    samples: int = option(8, "images or clips to generate at the end")

    def __post_init__(self):
        super().__post_init__()
        require(self.samples >= 0, "samples", self.samples, "at least 0")


@dataclass
class AutoregressiveConfig(GeneratorConfig):
    """A training run of a causal language model over codes."""


@dataclass
class MaskedConfig(GeneratorConfig):
    """A training run of a masked language model over codes."""

    model: GeneratorModelConfig = field(default_factory=lambda: GeneratorModelConfig(type="bert"))
