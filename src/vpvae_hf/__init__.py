"""Discrete tokens from images and audio: tokenizers trained by perturbing the latent, codebooks fitted afterwards.

Nothing heavy is imported until a name is used: audio needs no diffusers, images need no audio model.
"""

from . import registration  # noqa: F401, for its effect on transformers and diffusers
from .lazy import lazy_names

__version__ = "0.2.0"
_SOURCES = {
    "AutoencoderVP": ".models",
    "BatchTokenizer": ".modalities.batch_tokenizer",
    "CodeVocabulary": ".generation",
    "CodebookNotFittedError": ".quantizers",
    # diffusers looks for these two here when it loads a pipeline that holds one of our models.
    "ModelMixin": "diffusers",
    "PreTrainedModel": "transformers",
    "StreamingDecoder": ".models",
    "StreamingEncoder": ".models",
    "VPAutoregressivePipeline": ".generation",
    "VPCodecConfig": ".models",
    "VPCodecFeatureExtractor": ".models",
    "VPCodecModel": ".models",
    "VPImageProcessor": ".models",
    "VPMaskedPipeline": ".generation",
    "build_quantizer": ".quantizers",
    "bundled_tokenizer": ".bundled",
    "bundled_tokenizers": ".bundled",
    "deferred_checks": ".tensors",
    "fit_codebook": ".training",
    "measure_scaling_factor": ".training",
}
__all__ = list(_SOURCES)
_FORMER = {
    "VPAudioGenerationPipeline": "VPAutoregressivePipeline",
    "VPImageGenerationPipeline": "VPAutoregressivePipeline",
    "VPMaskedAudioPipeline": "VPMaskedPipeline",
    "VPMaskedImagePipeline": "VPMaskedPipeline",
}
__getattr__, __dir__ = lazy_names(__name__, _SOURCES, _FORMER)
