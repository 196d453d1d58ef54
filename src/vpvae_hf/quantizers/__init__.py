"""Quantizers: from continuous latents to codes, chosen by a plain dictionary."""

from .base import CodebookNotFittedError, NoCodesError, Quantizer, QuantizerConfig, QuantizerOutput
from .continuous import Continuous, ContinuousConfig
from .library import (
    FiniteScalarQuantization,
    FiniteScalarQuantizationConfig,
    SimVQ,
    SimVQConfig,
    VectorQuantization,
    VectorQuantizationConfig,
)
from .registry import QUANTIZERS, build_quantizer, quantizer_config
from .scalar_perturbation import ScalarPerturbation, ScalarPerturbationConfig
from .token_bridge import TokenBridge, TokenBridgeConfig
from .vector_perturbation import VectorPerturbation, VectorPerturbationConfig

__all__ = [
    "QUANTIZERS",
    "CodebookNotFittedError",
    "Continuous",
    "ContinuousConfig",
    "FiniteScalarQuantization",
    "FiniteScalarQuantizationConfig",
    "NoCodesError",
    "Quantizer",
    "QuantizerConfig",
    "QuantizerOutput",
    "ScalarPerturbation",
    "ScalarPerturbationConfig",
    "SimVQ",
    "SimVQConfig",
    "TokenBridge",
    "TokenBridgeConfig",
    "VectorPerturbation",
    "VectorPerturbationConfig",
    "VectorQuantization",
    "VectorQuantizationConfig",
    "build_quantizer",
    "quantizer_config",
]
