"""Quantizers: from continuous latents to codes, chosen by a plain dictionary.

`QUANTIZERS` has the classes of every kind. To add a kind, write a file here and a line in `QUANTIZERS`, or an entry
point in another package.
"""

from .base import CodebookNotFittedError, NoCodesError, Quantizer, QuantizerConfig, QuantizerOutput
from .codebook import CodebookQuantizer, CodebookQuantizerConfig
from .fsp import ScalarPerturbation, ScalarPerturbationConfig
from .registry import QUANTIZERS, build_quantizer, quantizer_config
from .scalar import ScalarGridConfig, ScalarGridQuantizer
from .vp import VectorPerturbation
from .vp_config import VectorPerturbationConfig

__all__ = [
    "QUANTIZERS",
    "CodebookNotFittedError",
    "CodebookQuantizer",
    "CodebookQuantizerConfig",
    "NoCodesError",
    "Quantizer",
    "QuantizerConfig",
    "QuantizerOutput",
    "ScalarGridConfig",
    "ScalarGridQuantizer",
    "ScalarPerturbation",
    "ScalarPerturbationConfig",
    "VectorPerturbation",
    "VectorPerturbationConfig",
    "build_quantizer",
    "quantizer_config",
]
