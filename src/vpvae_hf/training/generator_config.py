"""What a training run of a transformer over codes is told."""

from dataclasses import dataclass, field
from typing import Any, Literal

from vpvae_hf.settings import require

from .config import RunConfig, option


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


# About 25 million weights. transformers' own defaults are those of the largest models.
_SHAPE = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
_CAUSAL = {"kind": "llama", "intermediate_size": 1376, "num_key_value_heads": 8, **_SHAPE}
_MASKED = {"kind": "modernbert", "intermediate_size": 1024, "layer_types": ["full_attention"] * 8, **_SHAPE}
_TRANSFORMER = (
    "model type of transformers as kind, and arguments of its config; ids and positions follow from the codes"
)


@dataclass
class GeneratorConfig(RunConfig):
    """A training run of a transformer over codes; a run is one of its two kinds below."""

    transformer: dict[str, Any] = option({}, _TRANSFORMER)
    pretrained: str | None = option(None, "folder or hub id of a transformer to go on from, in place of a new one")
    tokenizer: str | None = option(None, "folder or hub id of the tokenizer; where null the one that made the codes")
    data: GeneratorDataConfig = field(default_factory=GeneratorDataConfig)
    samples: int = option(8, "images or clips to generate at the end")

    def __post_init__(self):
        super().__post_init__()
        if "kind" not in self.transformer:
            raise ValueError(f"transformer must name its kind, e.g. {{kind: llama}}, got {self.transformer}")
        require(self.samples >= 0, "samples", self.samples, "at least 0")


@dataclass
class AutoregressiveConfig(GeneratorConfig):
    """A training run of a causal language model over codes, such as llama, gpt2 or qwen2."""

    transformer: dict[str, Any] = option(_CAUSAL, _TRANSFORMER)


@dataclass
class MaskedConfig(GeneratorConfig):
    """A training run of a masked language model over codes, such as modernbert or bert."""

    transformer: dict[str, Any] = option(_MASKED, _TRANSFORMER)
    scheduler: Literal["amused", "block_refinement"] = option(
        "amused", "of diffusers, that the pipeline generates with"
    )
