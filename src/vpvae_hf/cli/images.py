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


def open_dataset(options: argparse.Namespace, **how) -> ImageSource:
    """The data set that the options name; `how` as `open_images` takes it."""
    return open_images(
        options.dataset,
        split=options.split,
        config=options.dataset_config,
        revision=options.dataset_revision,
        column=options.column,
        **how,
    )


def crops(options: argparse.Namespace, model, *, random: bool, passes: int | None, seed: int = 0) -> Iterable[Tensor]:
    """Batches of pixel values: centre crops in order, or random ones, shuffled."""
    size = model.config.sample_size if options.size is None else options.size
    source = open_dataset(options)
    check_readable(source)
    stream = ImageStream(
        source,
        size=size,
        shortest_side=options.shortest_side or size,
        crop="random" if random else "center",
        shuffle_buffer=1000 if random else 1,
        passes=passes,
        seed=seed,
    )
    return ImageLoader(stream, batch_size=options.batch_size, workers=1)
