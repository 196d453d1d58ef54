"""Stages about whole paths: clustering, tokenizing, training runs, several ranks."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from measuring import Session
from steps import _FSP, _TINY, _flag

_ROOT = Path(__file__).parents[2]
_ITERATIONS = 10


def clustering(session: Session) -> None:
    """K-means of 256 latents a code, ten iterations, with its mean square error on 100,000 other latents."""
    for size, dim in session.pick(((1024, 4), (4096, 5), (16384, 5), (65536, 5)), ((16, 3),)):
        latents = session.normal(256 * size, dim)
        _clustered(session, f"ours, K={size} d={dim}", dim, lambda latents=latents, size=size: _ours(latents, size))
        _clustered(
            session, f"flash-kmeans, K={size} d={dim}", dim, lambda latents=latents, size=size: _flash(latents, size)
        )
        if size <= 16384:
            _clustered(
                session, f"torch, K={size} d={dim}", dim, lambda latents=latents, size=size: _lloyd(latents, size)
            )


def _clustered(session: Session, name: str, dim: int, run: Callable[[], torch.Tensor]) -> None:
    centroids: list[torch.Tensor] = []

    def seconds() -> float:
        session.wait()
        started = time.perf_counter()
        centroids.append(run())
        session.wait()
        return time.perf_counter() - started

    if session.figure(name, "s", seconds) is not None:
        others = session.normal(100_000 if not session.quick else 100, dim, seed=9)
        error = torch.cat([torch.cdist(part, centroids[-1]).min(dim=1).values for part in others.split(4096)])
        session.figure(f"{name}, error", "mean square", lambda: float(error.double().square().mean()))


def _ours(latents: torch.Tensor, size: int) -> torch.Tensor:
    from vpvae_hf.codebook import fit_kmeans

    return fit_kmeans(latents, size, max_iterations=_ITERATIONS, tolerance=0).centroids


def _flash(latents: torch.Tensor, size: int) -> torch.Tensor:
    from flash_kmeans import batch_kmeans_Euclid

    return batch_kmeans_Euclid(latents[None], size, max_iters=_ITERATIONS)[1][0]


def _lloyd(latents: torch.Tensor, size: int) -> torch.Tensor:
    """What one would write first: random seeds, matrix products, sums by atomics."""
    centroids = latents[torch.randperm(len(latents), device=latents.device)[:size]]
    for _ in range(_ITERATIONS):
        squares = centroids.square().sum(dim=1)
        codes = torch.cat([(squares - 2 * part @ centroids.T).argmin(dim=1) for part in latents.split(1 << 14)])
        sums = torch.zeros_like(centroids).index_add_(0, codes, latents)
        counts = torch.zeros(size, 1, device=latents.device).index_add_(0, codes, torch.ones_like(latents[:, :1]))
        centroids = torch.where(counts > 0, sums / counts.clamp_min(1), centroids)
    return centroids


# How a model may be run: precision, whether TF32 is allowed, whether it is compiled.
_WAYS = {
    "fp32, no TF32": (torch.float32, False, False),
    "fp32, TF32": (torch.float32, True, False),
    "bf16 autocast": (torch.bfloat16, True, False),
    "bf16 autocast, compiled": (torch.bfloat16, True, True),
}


def tokenizing(session: Session) -> None:
    """Images of 256 pixels into codes by the VQGAN of factor 8: the model alone, with decoding, and how codes agree."""
    batch, side = session.pick((64, 256), (2, 16))
    images = (session.normal(4, batch, 3, side, side) / 3).clamp(-1, 1)
    for name, way in _WAYS.items():
        milliseconds = session.time(f"tokenize, {name}, B={batch}", lambda way=way: _tokenize(session, images, *way))
        session.figure(f"tokenize, {name}", "images/s", lambda ms=milliseconds: 1000 * batch / ms)
    for shape in session.pick(((500, 375), (1600, 1200)), ((40, 30),)):
        session.figure(
            f"decode {shape[0]} x {shape[1]} in 16 threads and tokenize, bf16",
            "images/s",
            lambda shape=shape: _from_files(session, shape, batch, side),
        )
    session.figure("codes unlike those of the CPU in fp32", "share", lambda: _agreement(session, side))


def _tokenizer(device: torch.device, quick: bool):
    from vpvae_hf import AutoencoderVP

    torch.manual_seed(0)
    return AutoencoderVP(**(_TINY if quick else {}), quantizer=_FSP).to(device).eval()


def _tokenize(session: Session, images: torch.Tensor, dtype: torch.dtype, tf32: bool, compiled: bool):
    model = _tokenizer(session.device, session.quick)
    if compiled:
        model.encoder.compile(backend="inductor" if session.on_cuda else "eager")

    def work(turn: int) -> torch.Tensor:
        with _tf32(tf32), torch.autocast(session.device.type, dtype, enabled=dtype != torch.float32):
            return model.tokenize(images[turn % 4])

    return work


def _tf32(allowed: bool):
    return _flag(torch.backends.cudnn, "allow_tf32", allowed)


def _from_files(session: Session, shape: tuple[int, int], batch: int, side: int) -> float:
    """Images a second, the first batch not counted. JPEGs are smooth noise, which compresses like photographs."""
    import numpy as np
    from PIL import Image

    random, files = np.random.default_rng(0), []
    for _ in range(32):
        small = Image.fromarray(random.integers(256, size=(30, 40, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize(shape, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=88)
        files.append(buffer.getvalue())

    def decoded(file: bytes) -> torch.Tensor:
        image = Image.open(io.BytesIO(file)).convert("RGB")
        scale = side / min(image.size)
        image = image.resize([max(side, round(scale * length)) for length in image.size], Image.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(image)[:side, :side].copy())

    model, batches = _tokenizer(session.device, session.quick), session.pick(31, 2)
    with ThreadPoolExecutor(16) as threads, torch.autocast(session.device.type, torch.bfloat16):
        pending = threads.map(decoded, itertools.islice(itertools.cycle(files), batch * (batches + 1)))
        for number in range(batches + 1):
            if number == 1:
                session.wait()
                started = time.perf_counter()
            items = torch.stack(list(itertools.islice(pending, batch)))
            items = items.pin_memory() if session.on_cuda else items
            pixels = items.to(session.device, non_blocking=True).permute(0, 3, 1, 2) / 127.5 - 1
            model.tokenize(pixels)
        session.wait()
    return batch * batches / (time.perf_counter() - started)


def _agreement(session: Session, side: int) -> dict[str, float]:
    images = (torch.randn(8, 3, side, side, generator=torch.Generator().manual_seed(0)) / 3).clamp(-1, 1)
    truth = _tokenizer(torch.device("cpu"), session.quick).tokenize(images)
    found = {}
    for name, way in _WAYS.items():
        codes = _tokenize(session, images.to(session.device).expand(4, *images.shape), *way)(0)
        found[name] = float((codes.cpu() != truth).float().mean())
    one_by_one = _tokenize(session, images[:, None].to(session.device), torch.float32, False, False)
    codes = torch.cat([one_by_one(turn) for turn in range(4)])
    found["fp32, no TF32, one by one"] = float((codes.cpu() != truth[:4]).float().mean())
    return found


def runs(session: Session) -> None:
    """The small recipe with the CPU's settings and with those of the device, and a run that is killed and resumed."""
    steps, data = session.pick(400, 4), session.out / "pictures"
    _write_pictures(data)
    plain = ("--mixed_precision", '"no"', "--torch_compile", "false")
    ways = {
        "the CPU's settings": (*plain, "--max_train_steps", str(steps)),
        "the defaults": ("--max_train_steps", str(steps)),
    }
    for name, arguments in ways.items():
        folder = session.out / "runs" / name.replace(" ", "_").replace("'", "")
        session.figure(
            f"run with {name}", "", lambda a=arguments, f=folder: _finished(_launch(session, data, f, *a), f)
        )
    folder = session.out / "runs/resumed"
    session.figure("run that is killed and resumed", "", lambda: _killed_and_resumed(session, data, folder, steps))


def _write_pictures(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for split, count in (("train", 64), ("validation", 8)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            coarse = Image.fromarray(random.integers(256, size=(8, 8, 3), dtype=np.uint8))
            coarse.resize((160, 160), Image.Resampling.BICUBIC).save(folder / split / f"{number}.png")


def _launch(session: Session, data: Path, folder: Path, *arguments: str) -> subprocess.Popen:
    recipe = _ROOT / "recipes/image"
    small = ("data.size", "data.shortest_side", "data.validation_size")
    size = dict.fromkeys(small, "16") | {"codebook.latents_per_code": "4"} if session.quick else {}
    fixed = {"data.name": str(data), "output_dir": str(folder), "data.workers": "0", "report_to": "none", **size}
    fixed |= {"checkpointing_steps": str(session.pick(100, 2)), "validation_steps": "10000", "logging_steps": "1"}
    command = [sys.executable, str(recipe / "train.py"), "--config", str(recipe / "small.yaml")]
    for name, value in fixed.items():
        command += [f"--{name}", value]
    folder.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | ({} if session.on_cuda else {"CUDA_VISIBLE_DEVICES": ""})
    with folder.with_suffix(".log").open("a") as log:
        return subprocess.Popen([*command, *arguments], env=environment, stdout=log, stderr=log)


def _finished(process: subprocess.Popen, folder: Path) -> dict[str, float]:
    """Means of the last rows of metrics."""
    if process.wait() != 0:
        raise RuntimeError((folder.with_suffix(".log").read_text().strip().splitlines() or ["no output"])[-1])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "loss/total" in row][-20:]
    names = ("loss/total", "quantizer/displacement_rms", "quantizer/quantization_error_rms", "quantizer/eta")
    means = {name: sum(row[name] for row in last) / len(last) for name in names if last[-1].get(name) is not None}
    quality = {name: value for row in rows for name, value in row.items() if name.startswith("validation/")}
    speed = {"examples_per_second": last[-1]["examples_per_second"]}
    return {name: round(value, 5) for name, value in (means | quality | speed).items() if value is not None}


def _killed_and_resumed(session: Session, data: Path, folder: Path, steps: int) -> dict[str, float]:
    """Killed once a checkpoint is there."""
    length = ("--max_train_steps", str(steps))
    process = _launch(session, data, folder, *length)
    while not list(folder.glob("checkpoint-*")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return _finished(_launch(session, data, folder, *length, "--resume_from_checkpoint", "latest"), folder)


def ranks(session: Session) -> None:
    """What a job's collectives cost: one rank that makes them nevertheless, and two on one device."""
    backends = ("nccl", "gloo", "cpu:gloo,cuda:nccl") if session.on_cuda else ("gloo",)
    for backend in backends:
        session.figure(f"one rank, {backend}", "ms a forward", lambda backend=backend: _job(session, backend, 1))
    session.figure("two ranks, gloo", "ms a forward", lambda: _job(session, "gloo", 2))


def _job(session: Session, backend: str, count: int) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    command += [str(Path(__file__).with_name("rank.py")), backend, str(session.device), *["--quick"][: session.quick]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not found:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return json.loads(found[0])
