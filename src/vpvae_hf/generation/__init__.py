"""Transformers over codes: what their ids mean, how they are trained and measured, and what they generate."""

from .autoregressive import CodeConstraint, VPAutoregressivePipeline
from .batches import (
    IGNORED,
    CausalBatches,
    CodeSequences,
    MaskedBatches,
    drop_conditions,
    load_code_tokenizer,
    mask_codes,
    vocabulary_of,
)
from .likelihood import CodeLikelihood, causal_likelihood, masked_likelihood
from .masked import VPMaskedPipeline, code_logits
from .sampling import GeneratedAudio, GeneratedImages, write_samples
from .vocabulary import CodeVocabulary, check_direction, new_transformer

__all__ = [
    "IGNORED",
    "CausalBatches",
    "CodeConstraint",
    "CodeLikelihood",
    "CodeSequences",
    "CodeVocabulary",
    "GeneratedAudio",
    "GeneratedImages",
    "MaskedBatches",
    "VPAutoregressivePipeline",
    "VPMaskedPipeline",
    "causal_likelihood",
    "check_direction",
    "code_logits",
    "drop_conditions",
    "load_code_tokenizer",
    "mask_codes",
    "masked_likelihood",
    "new_transformer",
    "vocabulary_of",
    "write_samples",
]
