# /// script
# requires-python = ">=3.11"
# dependencies = ["vpvae_hf[demo,ray]"]
# ///
"""Turn pictures into Parquet files of codes with Ray Data, on all cores or GPUs of a machine or a cluster.

    python examples/tokenize_with_ray.py TOKENIZER                      # photographs of scikit-image, for a try
    python examples/tokenize_with_ray.py TOKENIZER --pictures FOLDER --size 256 --workers 8

For the files, manifest and restarts of `vpvae tokenize` on a cluster see recipes/scale/tokenize_with_ray.py.
"""

import argparse
import sys
import time
from pathlib import Path

import ray
from PIL import Image

from vpvae_hf import BatchTokenizer
from vpvae_hf.data import load_photographs
from vpvae_hf.files import local_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tokenizer", help="folder or hub id of an image tokenizer")
    parser.add_argument("--pictures", type=Path, help="a folder; default: photographs of scikit-image")
    parser.add_argument("--size", type=int, default=128, help="side of the crop that is encoded, in pixels")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/examples/codes"))
    options = parser.parse_args()
    if options.output.exists() and any(options.output.iterdir()):
        sys.exit(f"{options.output} is not empty, give another --output")
    # Workers run in a folder of their own, so paths must be absolute.
    tokenizer = options.tokenizer if local_path(options.tokenizer) is None else str(Path(options.tokenizer).absolute())
    output = options.output.absolute()
    folder = options.pictures or photographs(output.with_name(f"{output.name}_pictures"))
    ray.init(ignore_reinit_error=True)
    gpus = min(1, ray.cluster_resources().get("GPU", 0))

    began = time.monotonic()
    # Files are not decoded here: workers decode and encode, and leave out files that cannot be read.
    files = ray.data.read_binary_files(str(folder.absolute()), include_paths=True)
    # A class, not a function: Ray makes an object of it in each worker, which loads the tokenizer once and keeps it.
    coded = files.map_batches(
        BatchTokenizer,
        fn_constructor_args=(tokenizer, "bytes"),
        fn_constructor_kwargs={"size": options.size, "shortest_side": options.size},  # one size, so that codes stack
        batch_size=16,
        compute=ray.data.ActorPoolStrategy(size=options.workers),
        num_gpus=gpus,
    )
    coded.write_parquet(str(output))  # Ray shows its progress, with the rows done

    written = ray.data.read_parquet(str(output))
    count, codes = written.count(), written.take(1)[0]["codes"]
    each = " x ".join(map(str, codes.shape))
    seconds = time.monotonic() - began
    print(f"{count} pictures as {each} codes each in {seconds:.1f} s, starting the workers included: {options.output}")


def photographs(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(load_photographs()[0]):
        Image.fromarray(image).save(folder / f"{number:02}.png")
    return folder


if __name__ == "__main__":
    main()
