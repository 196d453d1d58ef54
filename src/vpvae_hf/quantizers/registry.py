"""Finds the quantizer that a configuration names."""

import dataclasses
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

import torch

from vpvae_hf.settings import did_you_mean, plain

from .base import Quantizer, QuantizerConfig
from .fsp import ScalarPerturbation, ScalarPerturbationConfig
from .fsq import FiniteScalarQuantization, FiniteScalarQuantizationConfig
from .none import Continuous, ContinuousConfig
from .simvq import SimVQ, SimVQConfig
from .token_bridge import TokenBridge, TokenBridgeConfig
from .vp import VectorPerturbation
from .vp_config import VectorPerturbationConfig
from .vq import VectorQuantization, VectorQuantizationConfig

QUANTIZERS: dict[str, tuple[type[QuantizerConfig], type[Quantizer]]] = {
    "vp": (VectorPerturbationConfig, VectorPerturbation),
    "fsp": (ScalarPerturbationConfig, ScalarPerturbation),
    "vq": (VectorQuantizationConfig, VectorQuantization),
    "simvq": (SimVQConfig, SimVQ),
    "fsq": (FiniteScalarQuantizationConfig, FiniteScalarQuantization),
    "token_bridge": (TokenBridgeConfig, TokenBridge),
    "none": (ContinuousConfig, Continuous),
}
# Installed packages add kinds by entry points of this group. Each has the kind's name and points to its pair of
# classes.
ENTRY_POINTS = "vpvae_hf.quantizers"


def quantizer_config(settings: Mapping[str, Any] | QuantizerConfig) -> QuantizerConfig:
    """Make a configuration from a mapping with "kind" and fields of that kind; a given configuration is returned.

    Raises:
        TypeError: settings are not a mapping.
        ValueError: unknown kind or field, or a value out of its range; the message lists what is valid.
    """
    if isinstance(settings, QuantizerConfig):
        return settings
    if not isinstance(settings, Mapping):
        raise TypeError(f'quantizer settings must be a mapping such as {{"kind": "vp"}}, got {settings!r}')
    fields = {name: plain(value) for name, value in settings.items()}
    kind = fields.pop("kind", None)
    config_class, _ = _classes(kind)
    for name, value in config_class.former_fields.items():
        if fields.pop(name, value) != value:
            raise ValueError(
                f"{name} is no longer a setting of quantizer kind {kind!r}; leave it out, or delete it from the config "
                "of a saved model: only training used it"
            )
    valid = [field.name for field in dataclasses.fields(config_class)]
    for name in fields:
        if name not in valid:
            raise ValueError(f"unknown field {name!r} for quantizer kind {kind!r}; {did_you_mean(name, valid)}")
    return config_class(**fields)


def build_quantizer(settings: Mapping[str, Any] | QuantizerConfig) -> Quantizer:
    """Make a quantizer from settings, e.g. `{"kind": "vp", "codebook_size": 1024}`.

    Its `state_dict` has the weights and the fitted codebook; what else a resumed training needs is in its
    `training_state`. Errors: see `quantizer_config`.
    """
    config, default = quantizer_config(settings), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # loading a model in half precision may have set another
    try:
        return _classes(config.kind)[1](config)
    finally:
        torch.set_default_dtype(default)


def _classes(kind: Any) -> tuple[type[QuantizerConfig], type[Quantizer]]:
    """The pair of classes of a kind; those of another package are imported at their first use."""
    if kind in QUANTIZERS:
        return QUANTIZERS[kind]
    added = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if kind not in added:
        raise ValueError(f"unknown quantizer kind {kind!r}; {did_you_mean(str(kind), [*QUANTIZERS, *added])}")
    pair = added[kind].load()
    wanted = (QuantizerConfig, Quantizer)
    is_pair = isinstance(pair, tuple) and len(pair) == 2 and all(map(issubclass, pair, wanted))
    if not is_pair or pair[0].kind != kind:
        raise ValueError(
            f"the entry point {kind} = {added[kind].value} of {ENTRY_POINTS} must name a pair of classes, derived from "
            f"QuantizerConfig with kind {kind!r} and from Quantizer, got {pair!r}"
        )
    QUANTIZERS[kind] = pair
    return pair
