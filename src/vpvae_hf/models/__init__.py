"""Tokenizer models, imported when they are first used: those of images need diffusers, those of audio transformers."""

from vpvae_hf.lazy import lazy_names

_SOURCES = {
    "AutoencoderVP": ".autoencoder_vp",
    "AutoencoderVPOutput": ".autoencoder_vp",
    "StreamingDecoder": ".vp_codec_streaming",
    "StreamingEncoder": ".vp_codec_streaming",
    "Tokenizer": ".tokenizer",
    "VPCodecConfig": ".configuration_vp_codec",
    "VPCodecDecoderOutput": ".modeling_vp_codec",
    "VPCodecEncoderOutput": ".modeling_vp_codec",
    "VPCodecFeatureExtractor": ".feature_extraction_vp_codec",
    "VPCodecModel": ".modeling_vp_codec",
    "VPCodecOutput": ".modeling_vp_codec",
    "VPImageProcessor": ".image_processing_vp",
}
__all__ = list(_SOURCES)
__getattr__, __dir__ = lazy_names(__name__, _SOURCES, {})
