"""Compare the speed of two checkouts on a CPU: `speed.py --before CHECKOUT --after CHECKOUT [--images FOLDER]`.

Each checkout has a process of its own, which keeps its models. A case runs in the order before, after, after, before
and so on; times are processor times on one thread. The ratio is the median of the ratios of neighbouring runs, with its
quartiles, and is marked if it is above 1.03. Use a machine that does little else. Takes about 15 minutes. FOLDER
holds image files, for the case that reads and tokenizes them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "counts"))

_MOST_RATIO = 1.03
_QUEUES = {"K=1024 d=4": (1024, 4), "K=16384 d=5": (16384, 5)}
_TRAINED = ("vp, metropolis", "vp, random_codebook", "fsp")
_IMAGES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--after", type=Path)
    parser.add_argument("--images", type=Path, help="folder with a folder `train` of image files")
    parser.add_argument("--cases", nargs="+", help="beginnings of their names; default: all")
    parser.add_argument("--rounds", type=int, default=9, help="runs of each case in each checkout")
    parser.add_argument("--output", type=Path, help="file for the table, in Markdown")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        _serve(arguments.serve, arguments.images)
        return
    workers = [_worker(root, arguments.images) for root in (arguments.before, arguments.after)]
    lines = ["| case | before, s | after, s | after / before | quartiles | |", "|---|---|---|---|---|---|"]
    for name in _names(arguments.images):
        if arguments.cases is None or name.startswith(tuple(arguments.cases)):
            lines.append(_compared(name, workers, arguments.rounds))
            print(lines[-1], flush=True)
    for worker in workers:
        worker.stdin.close()
        worker.wait()
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


def _names(images: Path | None) -> list[str]:
    names = [f"training step, {size}: {kind}" for size in ("tiny", "small") for kind in _TRAINED]
    names += [f"{what}, {queue}" for what in ("search", "build of the index", "nearest") for queue in _QUEUES]
    names += ["K-means, K=256", "encode, image", "encode, audio", "encode, audio, padded"]
    return names if images is None else [*names, "tokenize files"]


def _worker(root: Path, images: Path | None) -> subprocess.Popen:
    command = [sys.executable, __file__, "--serve", str(root), *(["--images", str(images)] if images else [])]
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _compared(name: str, workers: list[subprocess.Popen], rounds: int) -> str:
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(-1, rounds):  # the first run is a warm-up
        for side in (0, 1) if turn % 2 else (1, 0):
            workers[side].stdin.write(name + "\n")
            workers[side].stdin.flush()
            answer = workers[side].stdout.readline()
            if not answer:
                raise SystemExit(f"the process of {('--before', '--after')[side]} ended in {name!r}, see above")
            if turn >= 0:
                times[side].append(json.loads(answer))
    ratios = [after / before for before, after in zip(*times, strict=True)]
    ratio = statistics.median(ratios)
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    mark = f"above {_MOST_RATIO}" if ratio > _MOST_RATIO else ""
    before, after = map(statistics.median, times)
    return f"| {name} | {before:.4g} | {after:.4g} | {ratio:.3f} | {low:.3f} to {high:.3f} | {mark} |"


def _serve(root: Path, images: Path | None) -> None:
    """Answer each line, the name of a case, with the seconds that the case took."""
    import torch

    # Keep what libraries print apart from the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(1)
    runs: dict[str, object] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in runs:
            torch.manual_seed(0)
            runs[name] = _case(name, root, images)
        print(json.dumps(runs[name]()), file=answers, flush=True)


def _case(name: str, root: Path, images: Path | None):
    """A function that does the case's work once and returns its seconds."""
    what, _, which = name.partition(", ")
    if what == "training step":
        size, _, kind = which.partition(": ")
        return _training(root, size, kind)
    if what in ("search", "build of the index", "nearest"):
        return _neighbors(what, *_QUEUES[which])
    if what == "K-means":
        return _kmeans()
    if what == "encode":
        return _encoding(root, which)
    return _tokenizing(root, images)


def _timed(work, repeats: int = 1):
    def run() -> float:
        started = time.process_time()
        for _ in range(repeats):
            work()
        return (time.process_time() - started) / repeats

    return run


def _training(root: Path, size: str, kind: str):
    import torch
    from accelerate import Accelerator
    from run import KINDS, fill_queue, run_config

    from vpvae_hf.modalities import modality_of
    from vpvae_hf.training.trainer import Trainer

    settings, steps = KINDS[kind], 24 if size == "tiny" else 8
    config = run_config("image", settings, "none") if size == "tiny" else _recipe(root, "image", settings)
    config.max_train_steps, config.logging_steps, config.report_to = steps, 10, []
    ours, shape = modality_of(config), (config.train_batch_size, 3, config.data.size, config.data.size)
    model = ours.build_model(config)
    fill_queue(model.quantize, torch.device("cpu"))
    batch = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 1
    losses = {"losses": ours.losses(config, model), "loss_weights": config.loss_weights}
    seen: list[float] = []

    def batches():
        while True:
            seen.append(time.process_time())
            yield batch

    def run() -> float:
        """Seconds of a step; the first two, which make the optimizer's state, do not count."""
        seen.clear()
        Trainer(model, batches(), config, **losses, accelerator=Accelerator(cpu=True)).run()
        return (seen[-1] - seen[2]) / (len(seen) - 3)

    return run


def _recipe(root: Path, modality: str, quantizer: dict):
    """Settings of a checkout's small recipe, with K = 1024 in four dimensions for every quantizer."""
    from vpvae_hf.modalities.audio import AudioTrainingConfig
    from vpvae_hf.modalities.image import ImageTrainingConfig
    from vpvae_hf.training.config import parse_config

    kinds = {"image": ImageTrainingConfig, "audio": AudioTrainingConfig}
    config = parse_config(kinds[modality], ["--config", str(root / f"recipes/{modality}/small.yaml")])
    own = {name: value for name, value in quantizer.items() if name in ("kind", "perturbation")}
    config.quantizer = config.quantizer | own if own["kind"] == "vp" else {"kind": own["kind"], "codebook_size": 1024}
    return config


def _neighbors(what: str, codes: int, dim: int):
    import torch

    from vpvae_hf.neighbors import build_index, nearest_point

    generator = torch.Generator().manual_seed(0)
    queue, queries = (torch.randn(count, dim, generator=generator) for count in (16 * dim * codes, 2048))
    if what == "nearest":
        return _timed(lambda: nearest_point(queries, queue[:codes]), 20)
    if what == "build of the index":
        return _timed(lambda: build_index(queue, "kdtree"))
    index = build_index(queue, "kdtree")
    return _timed(lambda: index.distances(queries, (8, 16 * dim)))


def _kmeans():
    import torch

    from vpvae_hf.codebook import fit_kmeans

    latents = torch.randn(1 << 16, 4, generator=torch.Generator().manual_seed(0))
    return _timed(lambda: fit_kmeans(latents, 256, max_iterations=5, tolerance=0))


def _encoding(root: Path, which: str):
    import torch

    modality = which.partition(",")[0]
    model = _small_model(root, modality)
    if modality == "image":
        inputs = (2 * torch.rand(8, 3, 64, 64) - 1,)
    else:
        audio = 0.1 * torch.randn(4, 1, 16000)
        lengths = torch.tensor([16000, 12000, 8000, 4000])
        inputs = (audio, (torch.arange(16000) < lengths[:, None]).long()) if "padded" in which else (audio,)
    return _timed(lambda: torch.no_grad()(model.encode)(*inputs), 5)


def _small_model(root: Path, modality: str):
    from vpvae_hf.modalities import modality_of

    config = _recipe(root, modality, {"kind": "fsp"})
    return modality_of(config).build_model(config).eval()


def _tokenizing(root: Path, images: Path):
    import itertools

    from vpvae_hf.data import ImageCrop, ItemLoader, ItemStream, open_images

    model = _small_model(root, "image")

    def work() -> None:
        stream = ItemStream(open_images(str(images), split="train"), ImageCrop(size=128, shortest_side=128))
        for batch in itertools.islice(ItemLoader(stream, batch_size=16), _IMAGES // 16):
            model.tokenize(batch)

    return _timed(work)


if __name__ == "__main__":
    main()
