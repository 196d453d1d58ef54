"""Run `vpvae tokenize` on all machines of a Ray cluster, or on all GPUs of one machine, with the same options:

    python recipes/scale/tokenize_with_ray.py TOKENIZER --dataset FOLDER --output CODES --workers 16

The data set is a folder of Parquet files or of WebDataset's tar files, or any other that `vpvae tokenize` reads. Each
worker takes one shard after the other and writes one file for each. Files and manifest are those of `vpvae tokenize`. A
worker that is killed is started again. If the whole run is killed, start it again and it continues. Tokenizer, data set
and output must be at the same place on every machine, and the package must be installed there.
"""

import argparse
import os
import sys

import ray
from ray.util import ActorPool

from vpvae_hf.cli.inputs import execution_of
from vpvae_hf.cli.parser import build_parser
from vpvae_hf.cli.tokenize import finish, open_code_files
from vpvae_hf.data import CodeFiles
from vpvae_hf.progress import progress_bar
from vpvae_hf.quantizers import NoCodesError

# How often a killed worker is started again. A shard that kills every worker, e.g. by its size, must not do so forever.
RESTARTS = 10


class Worker:
    """A process with a tokenizer that writes files of codes."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.execution, self.files = options, execution_of(options), None

    def opened(self) -> tuple[CodeFiles, str]:
        """Open them when a task needs them: for an error while an actor is made, Ray would show only the traceback."""
        if self.files is None:
            with self.execution.running():
                self.files = open_code_files(self.options, self.execution)
        return self.files

    def unfinished(self) -> tuple[list[int], str]:
        """The numbers of the files that are still to be written, and what they hold, e.g. "images"."""
        files, items = self.opened()
        return files.unfinished(), items

    def write(self, number: int) -> int:
        """Write a file. Returns how many images or clips of its shard were read."""
        counts, (files, _) = [], self.opened()
        with self.execution.running():
            files.write(number, batch_size=self.options.batch_size, progress=counts.append)
        return sum(counts)

    def finish(self) -> str:
        return finish(self.options, *self.opened())


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    more = "All options of `vpvae tokenize` are accepted too."
    parser = argparse.ArgumentParser(description=__doc__, epilog=more, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, help="default: one for each GPU, or each CPU core if there is no GPU")
    parser.add_argument("--gpus-per-worker", type=float, help="GPUs, may be a fraction; default: 1, or 0 without a GPU")
    parser.add_argument("--address", help="address of a cluster; default: RAY_ADDRESS, otherwise this machine alone")
    own, others = parser.parse_known_args(arguments)
    options = build_parser().parse_args(["tokenize", *others])
    # Workers run in a folder of their own.
    options.output = options.output.absolute()
    options.tokenizer, options.dataset = (_absolute(name) for name in (options.tokenizer, options.dataset))
    ray.init(address=own.address, ignore_reinit_error=True)
    try:
        print(run(options, own.workers, own.gpus_per_worker))
    except (ValueError, OSError, ImportError, NoCodesError) as error:  # a worker's error is the cause of Ray's
        print(getattr(error, "cause", error), file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace, workers: int | None, gpus_per_worker: float | None) -> str:
    """Write all files. Returns what was written."""
    there = ray.cluster_resources()
    cpus, gpus = there.get("CPU", 0), 0 if options.device == "cpu" else there.get("GPU", 0)
    share = min(gpus, 1) if gpus_per_worker is None else gpus_per_worker
    most = int(min(cpus, gpus / share if share else cpus))
    workers = most if workers is None else workers
    if not 1 <= workers <= most:
        raise ValueError(
            f"{workers} workers cannot run: the cluster has {cpus:g} CPU cores and {gpus:g} GPUs, enough for {most} "
            f"workers of one core and {share:g} GPUs; "
            + (f"give --workers from 1 to {most}" if most > 0 else "give another --gpus-per-worker, 0 for none")
            + ", or start more machines first"
        )
    actor = ray.remote(num_cpus=1, num_gpus=share, max_restarts=RESTARTS, max_task_retries=RESTARTS)(Worker)
    first = actor.remote(options)
    todo, items = ray.get(first.unfinished.remote())
    pool = ActorPool([first, *(actor.remote(options) for _ in range(min(workers, len(todo)) - 1))])
    done = 0
    with progress_bar(total=len(todo), desc="Tokenizing", unit="file") as bar:
        for count in pool.map_unordered(lambda worker, number: worker.write.remote(number), todo):
            done += count
            bar.update()
            bar.set_postfix_str(f"{done} {items}, {done / bar.format_dict['elapsed']:.0f} {items}/s")
    return ray.get(first.finish.remote())


def _absolute(name: str) -> str:
    return os.path.abspath(name) if os.path.exists(name) else name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
