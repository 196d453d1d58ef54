"""The model that a run starts with."""

from collections.abc import Mapping
from typing import Any

from vpvae_hf.models import AutoencoderVP

from .config import ModelConfig


def build_model(config: ModelConfig, quantizer: Mapping[str, Any], size: int) -> AutoencoderVP:
    """A new model, or one that goes on from a saved tokenizer or from an AutoencoderKL.

    Args:
        quantizer: settings with their kind. Without a kind they change those of the tokenizer that is gone on from;
            empty, they leave them as they are.
        size: side of the images that it is for in pixels, sample_size of a new model.

    Raises:
        ValueError: invalid settings, or a start that cannot be loaded.
    """
    names = {"subfolder": config.subfolder, "revision": config.revision}
    places = {name: value for name, value in names.items() if value is not None}
    if config.from_autoencoder_kl is not None:
        return AutoencoderVP.from_autoencoder_kl(
            config.from_autoencoder_kl, quantizer=dict(quantizer) or None, **places
        )
    if config.pretrained is None:
        architecture = {"sample_size": size, **config.architecture}
        return AutoencoderVP(**architecture, quantizer=dict(quantizer) or None)
    model = AutoencoderVP.from_pretrained(config.pretrained, **places)
    present = model.quantize.config.to_dict()
    wanted = dict(quantizer) if "kind" in quantizer else {**present, **quantizer}
    if wanted != present:
        wanted.pop("fitted", None)
        model.set_quantizer(wanted)
    return model
