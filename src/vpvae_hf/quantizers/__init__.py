"""Quantizers: from continuous latents to codes, chosen by a plain dictionary."""

from .base import CodebookNotFittedError, NoCodesError, Quantizer, QuantizerConfig, QuantizerOutput
from .fsp import ScalarPerturbation, ScalarPerturbationConfig
from .fsq import FiniteScalarQuantization, FiniteScalarQuantizationConfig
from .none import Continuous, ContinuousConfig
from .registry import QUANTIZERS, build_quantizer, quantizer_config
from .simvq import SimVQ, SimVQConfig
from .token_bridge import TokenBridge, TokenBridgeConfig
from .vp import VectorPerturbation, VectorPerturbationConfig
from .vq import VectorQuantization, VectorQuantizationConfig

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
