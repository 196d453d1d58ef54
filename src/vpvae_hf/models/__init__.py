"""Tokenizer models."""

from .autoencoder_vp import AutoencoderVP, AutoencoderVPOutput

__all__ = ["AutoencoderVP", "AutoencoderVPOutput"]
