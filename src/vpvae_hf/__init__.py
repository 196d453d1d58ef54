"""Discrete tokens from images: tokenizers trained by perturbing the latent, with the codebook fitted afterwards."""

import diffusers
from diffusers import ModelMixin
from diffusers.pipelines import pipeline_loading_utils as _pipelines

from .models import AutoencoderVP
from .quantizers import CodebookNotFittedError, build_quantizer
from .training import fit_codebook

__version__ = "0.1.0"
__all__ = [
    "AutoencoderVP",
    "CodebookNotFittedError",
    "ModelMixin",  # diffusers looks for it here when it loads a pipeline that holds one of our models
    "build_quantizer",
    "fit_codebook",
]

# diffusers loads a pipeline's component only from libraries listed here, and its AutoModel only from its own names.
_pipelines.LOADABLE_CLASSES["vpvae_hf"] = {"ModelMixin": ["save_pretrained", "from_pretrained"]}
diffusers.AutoencoderVP = AutoencoderVP
