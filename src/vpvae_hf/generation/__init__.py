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
from .output import write_generated
from .sampling import CodePipeline, GeneratedAudio, GeneratedImages, write_samples
from .texts import new_text_tokenizer, text_ids, text_tokenizer_of
from .transformer import check_direction, new_transformer
from .vocabulary import CodeVocabulary

__all__ = [
    "IGNORED",
    "CausalBatches",
    "CodeConstraint",
    "CodeLikelihood",
    "CodePipeline",
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
    "new_text_tokenizer",
    "new_transformer",
    "text_ids",
    "text_tokenizer_of",
    "vocabulary_of",
    "write_generated",
    "write_samples",
]
