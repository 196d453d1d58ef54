"""Options that name a data set, for the commands that read one for a tokenizer."""

import argparse

from vpvae_hf.modalities import modality_of
from vpvae_hf.modalities.config import DataConfig
from vpvae_hf.models.tokenizer import Tokenizer

# Options that some modalities have a setting for.
_OF_MODALITIES = ("size", "shortest_side", "resample", "downmix")


def data_config(options: argparse.Namespace, model: Tokenizer, *, streaming: bool = True) -> DataConfig:
    """What the options name, as settings of the tokenizer's modality; training and validation split are the same."""
    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
    data = modality_of(model).data_config(model, **{name: getattr(options, name) for name in _OF_MODALITIES})
    data.name, data.config, data.revision = options.dataset, options.dataset_config, options.dataset_revision
    data.split = data.validation_split = options.split
    data.column, data.streaming, data.workers = options.column, streaming, 1
    return data
