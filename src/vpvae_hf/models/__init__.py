"""Tokenizer models of images and audio."""

from .autoencoder_vp import AutoencoderVP, AutoencoderVPOutput
from .configuration_vp_codec import VPCodecConfig
from .feature_extraction_vp_codec import VPCodecFeatureExtractor
from .modeling_vp_codec import VPCodecDecoderOutput, VPCodecEncoderOutput, VPCodecModel, VPCodecOutput
from .tokenizer import Tokenizer
from .vp_codec_streaming import StreamingDecoder, StreamingEncoder

__all__ = [
    "AutoencoderVP",
    "AutoencoderVPOutput",
    "StreamingDecoder",
    "StreamingEncoder",
    "Tokenizer",
    "VPCodecConfig",
    "VPCodecDecoderOutput",
    "VPCodecEncoderOutput",
    "VPCodecFeatureExtractor",
    "VPCodecModel",
    "VPCodecOutput",
]
