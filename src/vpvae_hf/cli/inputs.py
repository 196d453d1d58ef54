"""Options of the commands that run a tokenizer over a data set: which data, and how the tokenizer is run."""

import argparse

import torch

from vpvae_hf.modalities import Execution, modality_of
from vpvae_hf.modalities.config import DataConfig
from vpvae_hf.models.tokenizer import Tokenizer

# Only some commands have these options, and only some modalities have the settings of the same names.
_SETTINGS = ("size", "shortest_side", "resample", "downmix", "validation_share")


def data_config(options: argparse.Namespace, model: Tokenizer, *, streaming: bool = True) -> DataConfig:
    """The data that the options name, as settings of the tokenizer's modality."""
    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
    data = modality_of(model).data_config(model, **{name: getattr(options, name, None) for name in _SETTINGS})
    data.name, data.config, data.revision = options.dataset, options.dataset_config, options.dataset_revision
    # If no split is named, fitting reads the split train, so nothing that a validation measures.
    data.split, data.validation_split = options.split or "train", options.split or "validation"
    data.column, data.streaming, data.workers = options.column, streaming, 1
    return data


def execution_of(options: argparse.Namespace, own: torch.device | None = None) -> Execution:
    """How the tokenizer is run according to the options.

    Args:
        own: this rank's device. It is used unless the options name a device of another type or with a number.
    """
    device = options.device
    if own is not None and device in (None, own.type):
        device = str(own)
    exact = getattr(options, "exact", False)
    return Execution(dtype=options.dtype, compile=options.compile, device=device, exact=exact)
