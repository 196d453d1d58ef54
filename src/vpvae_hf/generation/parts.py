"""What pipelines are held to: that their parts belong together, and that they are asked for what can be."""

import math

from transformers import PreTrainedModel

from vpvae_hf.models import VPCodecModel

from .vocabulary import CodeVocabulary


def check_parts(tokenizer, model: PreTrainedModel, *, dimensions: int) -> None:
    """See that a tokenizer and a model over codes belong together.

    Args:
        dimensions: of the codes of an example, 2 of an image and 1 of a clip.

    Raises:
        ValueError, CodebookNotFittedError, NoCodesError: they do not, see `CodeVocabulary`.
    """
    vocabulary = CodeVocabulary.of(model)
    if len(vocabulary.grid) != dimensions:
        what = "images, [h, w]" if dimensions == 2 else "clips, [n]"
        raise ValueError(f"this pipeline makes {what}, but the model was trained on the grid {list(vocabulary.grid)}")
    vocabulary.check_model(model)
    vocabulary.check_tokenizer(tokenizer)


def tokens_of(seconds: float | None, vocabulary: CodeVocabulary, codec: VPCodecModel, name: str) -> int:
    """How many tokens so many seconds of audio have; the vocabulary's longest for None.

    Raises:
        ValueError: none, or more than the model knows.
    """
    most, rate = vocabulary.grid[0], codec.config.frame_rate
    tokens = most if seconds is None else math.ceil(seconds * rate - 1e-6)
    if not 1 <= tokens <= most:
        raise ValueError(
            f"{name} must be above 0 and at most {most / rate:.3f}, as the model was trained, got {seconds}"
        )
    return tokens


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise a ValueError for what nothing can be sampled with."""
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}; 0 takes the likeliest code each time")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}; None for no limit")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}; None for no limit")
