"""Tokenizer models."""

from .autoencoder_vp import AutoencoderVP, AutoencoderVPOutput
from .codec_streaming import StreamingDecoder, StreamingEncoder
from .configuration_vp_codec import VPCodecConfig
from .feature_extraction_vp_codec import VPCodecFeatureExtractor
from .modeling_vp_codec import VPCodecDecoderOutput, VPCodecEncoderOutput, VPCodecModel, VPCodecOutput

__all__ = [
    "AutoencoderVP",
    "AutoencoderVPOutput",
    "StreamingDecoder",
    "StreamingEncoder",
    "VPCodecConfig",
    "VPCodecDecoderOutput",
    "VPCodecEncoderOutput",
    "VPCodecFeatureExtractor",
    "VPCodecModel",
    "VPCodecOutput",
]
