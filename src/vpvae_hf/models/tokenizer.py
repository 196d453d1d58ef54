"""The type of every `model`."""

from .quantizer_owner import QuantizerOwner as Tokenizer

__all__ = ["Tokenizer"]
