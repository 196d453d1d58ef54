"""Discrete tokens from images and audio: tokenizers trained by perturbing the latent, codebooks fitted afterwards."""

import diffusers
from diffusers import ModelMixin
from diffusers.pipelines import pipeline_loading_utils as _pipelines
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization, PreTrainedModel

from .generation import CodeVocabulary, VPAutoregressivePipeline, VPMaskedPipeline
from .models import (
    AutoencoderVP,
    StreamingDecoder,
    StreamingEncoder,
    VPCodecConfig,
    VPCodecFeatureExtractor,
    VPCodecModel,
)
from .quantizers import CodebookNotFittedError, build_quantizer
from .training import fit_codebook, measure_scaling_factor

__version__ = "0.1.0"
__all__ = [
    "AutoencoderVP",
    "CodeVocabulary",
    "CodebookNotFittedError",
    "ModelMixin",  # diffusers looks for these two here when it loads a pipeline that holds one of our models
    "PreTrainedModel",
    "StreamingDecoder",
    "StreamingEncoder",
    "VPAutoregressivePipeline",
    "VPCodecConfig",
    "VPCodecFeatureExtractor",
    "VPCodecModel",
    "VPMaskedPipeline",
    "build_quantizer",
    "fit_codebook",
    "measure_scaling_factor",
]

# diffusers loads a pipeline's component only from libraries listed here, and pipelines, and what its AutoModel loads,
# only from its own names.
_ways = ["save_pretrained", "from_pretrained"]
_pipelines.LOADABLE_CLASSES["vpvae_hf"] = {"ModelMixin": _ways, "PreTrainedModel": _ways}
for _class in (AutoencoderVP, VPAutoregressivePipeline, VPMaskedPipeline):
    setattr(diffusers, _class.__name__, _class)

AutoConfig.register(VPCodecConfig.model_type, VPCodecConfig)
AutoModel.register(VPCodecConfig, VPCodecModel)
AutoModelForAudioTokenization.register(VPCodecConfig, VPCodecModel)
AutoFeatureExtractor.register(VPCodecConfig, VPCodecFeatureExtractor)
