"""What keeps `generate()` to valid sequences of codes."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .vocabulary import CodeVocabulary


class CodeConstraint(LogitsProcessor):
    """Lets `generate()` choose codes alone, and the end only where a sequence may end.

    Args:
        vocabulary: of the model.
        prompt_length: ids before the first code.
        shortest: number of ids of codes from which on a sequence may end.
        longest: number of ids of codes at which it must.
    """

    def __init__(self, vocabulary: CodeVocabulary, *, prompt_length: int, shortest: int, longest: int):
        self._vocabulary, self._prompt_length = vocabulary, prompt_length
        self._shortest, self._longest = shortest, longest

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        vocabulary, made = self._vocabulary, input_ids.shape[1] - self._prompt_length
        allowed = torch.full_like(scores, -torch.inf)
        if made < self._longest:
            codes = slice(vocabulary.first_code, vocabulary.begin)
            allowed[:, codes] = scores[:, codes]
        if made >= self._shortest and made % vocabulary.code_groups == 0:
            allowed[:, vocabulary.end] = scores[:, vocabulary.end] if made < self._longest else 0
        return allowed
