"""Transformers over codes: what their ids mean, how they are trained and measured, and what they generate."""

from .autoregressive import VPAudioGenerationPipeline, VPImageGenerationPipeline
from .constraint import CodeConstraint
from .decoding import GeneratedAudio, GeneratedImages
from .likelihood import CodeLikelihood, causal_likelihood, masked_likelihood
from .masked import VPMaskedAudioPipeline, VPMaskedImagePipeline, code_logits
from .sequences import IGNORED, CausalBatches, CodeSequences, MaskedBatches, drop_conditions, mask_codes
from .vocabulary import CodeVocabulary

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
    "VPAudioGenerationPipeline",
    "VPImageGenerationPipeline",
    "VPMaskedAudioPipeline",
    "VPMaskedImagePipeline",
    "causal_likelihood",
    "code_logits",
    "drop_conditions",
    "mask_codes",
    "masked_likelihood",
]
