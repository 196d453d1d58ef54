"""Options that name a data set, for the commands that read one for a tokenizer."""

import argparse

from vpvae_hf.modalities import modality_of
from vpvae_hf.modalities.config import DataConfig
from vpvae_hf.models.tokenizer import Tokenizer

# Options that some modalities have a setting for.
_OF_MODALITIES = ("size", "shortest_side", "resample", "downmix")


def add_data_options(parser: argparse.ArgumentParser, split: str) -> None:
    """Add the options; `split` is the default one."""
    parser.add_argument("--dataset", required=True, help="hub id or local path of a data set of images or audio")
    parser.add_argument("--dataset-config", help="configuration (subset) of the data set")
    parser.add_argument("--dataset-revision", help="branch, tag or commit of the data set")
    parser.add_argument("--split", default=split, help="split to read")
    parser.add_argument("--column", help="column that holds the images or the audio; default: the only one")
    parser.add_argument(
        "--batch-size", type=int, default=16, help="images or clips encoded at once; clips are measured one by one"
    )
    images = parser.add_argument_group("for images")
    images.add_argument("--size", type=int, help="side of a crop in pixels; default: the tokenizer's sample_size")
    images.add_argument("--shortest-side", type=int, help="images are scaled to it; default: that of a crop")
    add_audio_options(parser.add_argument_group("for audio"))


def add_audio_options(parser) -> None:
    """Add what may be done to audio so that it fits."""
    parser.add_argument("--resample", action="store_true", help="convert files of another sampling rate")
    parser.add_argument("--downmix", action="store_true", help="average the channels of files that have several")


def data_config(options: argparse.Namespace, model: Tokenizer, *, streaming: bool = True) -> DataConfig:
    """What the options name, as settings of the tokenizer's modality; training and validation split are the same.

    Raises:
        ValueError: an option that has no meaning for the tokenizer, or a batch size below 1.
    """
    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
    data = modality_of(model).data_config(model, **{name: getattr(options, name) for name in _OF_MODALITIES})
    data.name, data.config, data.revision = options.dataset, options.dataset_config, options.dataset_revision
    data.split = data.validation_split = options.split
    data.column, data.streaming, data.workers = options.column, streaming, 1
    return data
