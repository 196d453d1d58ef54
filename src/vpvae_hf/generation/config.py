"""Settings that all recipes over codes share."""

from dataclasses import dataclass

from vpvae_hf.modalities.config import option
from vpvae_hf.settings import require


@dataclass
class CodeDataConfig:
    """Which codes to train and validate on."""

    tokens: str | None = option(None, "folder that `vpvae tokenize` wrote, to train on")
    validation_tokens: str | None = option(None, "folder with codes to validate on; null: measure nothing")
    condition_column: str | None = option(
        None, "column of whole numbers, such as classes, or of texts, such as captions, that conditions the codes"
    )
    text_tokenizer: str | None = option(
        None, "folder or hub id of the tokenizer of texts; null: make one from the training texts"
    )
    text_vocabulary: int = option(4096, "largest number of ids of a text tokenizer made from the training texts")
    text_length: int = option(64, "largest number of ids per text; longer texts are cut")
    drop_condition: float = option(0.1, "share of the examples whose condition is left out, for guidance")
    window: int | None = option(None, "tokens per sequence of audio; null: those of the longest clip")

    def __post_init__(self):
        require(0 <= self.drop_condition <= 1, "data.drop_condition", self.drop_condition, "in [0, 1]")
        require(self.window is None or self.window >= 1, "data.window", self.window, "at least 1, or null")
        require(self.text_length >= 1, "data.text_length", self.text_length, "at least 1")
