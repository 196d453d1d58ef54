"""Options that name a data set of images, for the commands that read one."""

import argparse
from collections.abc import Iterable

from torch import Tensor

from vpvae_hf.data import ImageLoader, ImageSource, ImageStream, check_readable, open_images


def add_data_options(parser: argparse.ArgumentParser, split: str) -> None:
    """Add the options; `split` is the default one."""
    parser.add_argument("--dataset", required=True, help="hub id or local path of a data set of images")
    parser.add_argument("--dataset-config", help="configuration (subset) of the data set")
    parser.add_argument("--dataset-revision", help="branch, tag or commit of the data set")
    parser.add_argument("--split", default=split, help="split to read")
    parser.add_argument("--column", help="column that holds the images; default: the only one")
    parser.add_argument("--size", type=int, help="side of a crop in pixels; default: the tokenizer's sample_size")
    parser.add_argument("--shortest-side", type=int, help="images are scaled to it; default: that of a crop")
    parser.add_argument("--batch-size", type=int, default=16, help="images encoded at once")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode images")


def open_dataset(options: argparse.Namespace) -> ImageSource:
    """The data set that the options name, seen to hold images."""
    source = open_images(
        options.dataset,
        split=options.split,
        config=options.dataset_config,
        revision=options.dataset_revision,
        column=options.column,
    )
    check_readable(source)
    return source


def crops(options: argparse.Namespace, model, *, random: bool, passes: int | None, seed: int = 0) -> Iterable[Tensor]:
    """Batches of pixel values: centre crops in order, or random ones, shuffled.

    Raises:
        ValueError: a size that is no multiple of the model's factor.
    """
    size, factor = options.size or model.config.sample_size, model.downsample_factor
    if size % factor or size < 1:
        near = max(factor, size // factor * factor)
        raise ValueError(f"--size must be a multiple of the tokenizer's factor {factor}, got {size}; try {near}")
    stream = ImageStream(
        open_dataset(options),
        size=size,
        shortest_side=options.shortest_side or size,
        crop="random" if random else "center",
        shuffle_buffer=1000 if random else 1,
        passes=passes,
        seed=seed,
    )
    return ImageLoader(stream, batch_size=options.batch_size, workers=options.workers)
