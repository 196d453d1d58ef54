"""Quantizers: from continuous latents to codes, chosen by a plain dictionary."""

from .base import CodebookNotFittedError, Quantizer, QuantizerConfig, QuantizerOutput
from .registry import QUANTIZERS, build_quantizer, quantizer_config
from .scalar_perturbation import ScalarPerturbation, ScalarPerturbationConfig
from .vector_perturbation import VectorPerturbation, VectorPerturbationConfig

__all__ = [
    "QUANTIZERS",
    "CodebookNotFittedError",
    "Quantizer",
    "QuantizerConfig",
    "QuantizerOutput",
    "ScalarPerturbation",
    "ScalarPerturbationConfig",
    "VectorPerturbation",
    "VectorPerturbationConfig",
    "build_quantizer",
    "quantizer_config",
]
