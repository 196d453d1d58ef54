"""Whether the parts of a pipeline belong together, and how long a clip may be."""

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
