"""Stages about whole paths: clustering, tokenizing, training runs, several ranks."""

import contextlib
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
from steps import _FSP, _TINY, _flag, under_watch

_ROOT = Path(__file__).parents[2]
_ITERATIONS = 10


def clustering(session: Session) -> None:
    """K-means of 256 latents per code, ten iterations, with its mean square error on 100,000 other latents."""
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
    """Images of 256 pixels to codes by the VQGAN of factor 8: model alone, with reading JPEGs, and how codes agree."""
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
    session.figure("unequal codes, code_rows in a side stream", "", lambda: _in_side_stream(session))
    session.figure("unequal codes, code_rows on cuda:1 while cuda:0 is current", "", lambda: _on_second_gpu(session))
    session.figure("synchronizations of code_rows, a batch", "", lambda: _code_synchronizations(session))
    for compiled in (False, True):
        _code_rates(session, compiled)


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
    """Images per second, without the first batch. The JPEGs are smooth noise, which compresses like photographs."""
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


class _Coding:
    """The arguments of `code_rows`, for batches of different images."""

    def __init__(self, session: Session, device: torch.device):
        from vpvae_hf.modalities.image import ImageModality

        self.model, self.modality = _tokenizer(device, session.quick), ImageModality()
        self.side = session.pick(256, 16)
        self.transform = self.modality.eval_transform(self.modality.data_config(self.model, size=self.side), self.model)

    def blocks(self, batch: int, count: int, step: int = 1) -> list[list[torch.Tensor]]:
        """Batches, each of which begins `step` images after the one before."""
        shape = (batch + step * (count - 1), self.side, self.side, 3)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return [list(images[start : start + batch]) for start in range(0, step * count, step)]

    def rows(self, blocks: list[list[torch.Tensor]]):
        return self.modality.code_rows(blocks, self.transform, self.model, len(blocks[0]))

    def unequal(self, blocks: list[list[torch.Tensor]], rows: list[list[dict]]) -> int:
        """The number of codes that differ from those of each batch encoded by itself."""
        count = 0
        for block, found in zip(blocks, rows, strict=True):
            pixels = self.transform.model_input(self.transform.collate(block).to(self.model.device))
            codes = torch.stack([torch.from_numpy(row["codes"].astype("int64")) for row in found])
            count += int((codes != self.model.tokenize(pixels).cpu()).sum())
        return count


def _in_side_stream(session: Session) -> int:
    coding = _Coding(session, session.device)
    blocks = coding.blocks(*session.pick((16, 100), (2, 3)))
    session.wait()
    stream = torch.cuda.stream(torch.cuda.Stream(session.device)) if session.on_cuda else contextlib.nullcontext()
    with stream:
        rows = list(coding.rows(blocks))
    return coding.unequal(blocks, rows)


def _on_second_gpu(session: Session) -> int:
    if torch.cuda.device_count() < 2:
        raise RuntimeError(f"this needs two GPUs, and there are {torch.cuda.device_count()}")
    coding = _Coding(session, torch.device("cuda", 1))
    blocks = coding.blocks(*session.pick((16, 100), (2, 3)))
    with torch.cuda.device(0):
        return coding.unequal(blocks, list(coding.rows(blocks)))


def _code_synchronizations(session: Session) -> int:
    coding, found = _Coding(session, session.device), []
    blocks = coding.blocks(session.pick(16, 2), 4)
    for _ in coding.modality.code_rows(
        under_watch(session, blocks, found), coding.transform, coding.model, len(blocks[0])
    ):
        pass
    return len(found)


def _code_rates(session: Session, compiled: bool) -> None:
    """Images per second, after two batches of warm-up."""

    def prepared() -> _Coding:
        from vpvae_hf.modalities import Execution

        coding = _Coding(session, session.device)
        Execution(dtype="bfloat16", device=str(session.device)).prepare(coding.model)
        if compiled:
            coding.model.encoder.compile(backend="inductor" if session.on_cuda else "eager")
        return coding

    def fetched_at_once(coding: _Coding, blocks: list[list[torch.Tensor]]):
        for block in blocks:
            yield coding.modality.encode(block, coding.transform, coding.model).cpu().numpy()

    def rate(coding: _Coding, batch: int, codes: Callable) -> float:
        blocks = coding.blocks(batch, session.pick(1280, 2 * batch) // batch, step=batch)
        list(codes(coding, blocks[:2]))
        session.wait()
        started = time.perf_counter()
        list(codes(coding, blocks))
        return len(blocks) * batch / (time.perf_counter() - started)

    coding, how = prepared(), "compiled" if compiled else "eager"
    for batch, (name, codes) in itertools.product(
        session.pick((16, 64), (2,)), {"code_rows": _Coding.rows, "fetching at once": fetched_at_once}.items()
    ):
        session.figure(
            f"{name}, bf16 {how}, B={batch}",
            "images/s",
            lambda batch=batch, codes=codes: rate(coding, batch, codes),
        )


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
    session.figure("resumed where the scale is measured", "", lambda: _resumed_at_measurement(session, data, steps))


def _write_pictures(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for split, count in (("train", 64), ("validation", 8)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            coarse = Image.fromarray(random.integers(256, size=(8, 8, 3), dtype=np.uint8))
            coarse.resize((160, 160), Image.Resampling.BICUBIC).save(folder / split / f"{number}.png")


# Without this, two runs with one seed differ on a GPU.
_DETERMINISTIC = """
import runpy, sys, torch
torch.use_deterministic_algorithms(True, warn_only=True)
torch.backends.cudnn.deterministic = True
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _launch(
    session: Session, data: Path, folder: Path, *arguments: str, python: tuple[str, ...] = ()
) -> subprocess.Popen:
    recipe = _ROOT / "recipes/image"
    small = ("data.size", "data.shortest_side", "data.validation_size")
    size = dict.fromkeys(small, "16") | {"codebook.latents_per_code": "4"} if session.quick else {}
    fixed = {"data.name": str(data), "output_dir": str(folder), "data.workers": "0", "report_to": "none", **size}
    fixed |= {"checkpointing_steps": str(session.pick(100, 2)), "validation_steps": "10000", "logging_steps": "1"}
    command = [sys.executable, *python, str(recipe / "train.py"), "--config", str(recipe / "small.yaml")]
    for name, value in fixed.items():
        command += [f"--{name}", value]
    folder.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | ({} if session.on_cuda else {"CUDA_VISIBLE_DEVICES": ""})
    environment |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if python else {}
    with folder.with_suffix(".log").open("a") as log:
        return subprocess.Popen([*command, *arguments], env=environment, stdout=log, stderr=log)


def _finished(process: subprocess.Popen, folder: Path) -> dict[str, float]:
    """Means of the last rows of metrics."""
    if process.wait() != 0:
        raise RuntimeError((folder.with_suffix(".log").read_text().strip().splitlines() or ["no output"])[-1])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "loss/total" in row][-20:]
    names = ("loss/total", "quantizer/displacement_rms", "quantizer/quantization_error_rms", "quantizer/eta")
    known = {name: [row[name] for row in last if row.get(name) is not None] for name in names}
    means = {name: sum(values) / len(values) for name, values in known.items() if values}
    quality = {name: value for row in rows for name, value in row.items() if name.startswith("validation/")}
    speed = {"examples_per_second": last[-1]["examples_per_second"]}
    return {name: round(value, 5) for name, value in (means | quality | speed).items() if value is not None}


def _killed_and_resumed(session: Session, data: Path, folder: Path, steps: int) -> dict[str, float]:
    """A run that is killed once a checkpoint is written, and resumed."""
    length = ("--max_train_steps", str(steps))
    _kill(_launch(session, data, folder, *length), folder)
    return _finished(_launch(session, data, folder, *length, "--resume_from_checkpoint", "latest"), folder)


def _kill(process: subprocess.Popen, folder: Path) -> None:
    while not list(folder.glob("checkpoint-*")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _resumed_at_measurement(session: Session, data: Path, steps: int) -> dict[str, float]:
    """How rows differ from those of a run that was not killed. Each step renews half of the queue, so each measures."""
    queue = {"codebook_size": session.pick(256, 64), "queue_per_code": 2, "queue_share": 1.0}
    how = ["--max_train_steps", str(steps), "--torch_compile", "false", "--codebook.latents_per_code", "4"]
    how += itertools.chain(*((f"--quantizer.{name}", str(value)) for name, value in queue.items()))
    whole, killed = (session.out / "runs" / name for name in ("whole", "killed"))
    python = {"python": ("-c", _DETERMINISTIC)}
    _finished(_launch(session, data, whole, *how, **python), whole)
    _kill(_launch(session, data, killed, *how, **python), killed)
    at = max(int(folder.name.split("-")[1]) for folder in killed.glob("checkpoint-*"))
    _finished(_launch(session, data, killed, *how, "--resume_from_checkpoint", "latest", **python), killed)
    expected, found = (_losses_after(at, folder) for folder in (whole, killed))
    if not found or len(found) != len(expected):
        raise RuntimeError(f"{len(found)} rows after step {at}, but {len(expected)} in the run that was not killed")
    errors = [row["quantizer/quantization_error_rms"] for row in _losses_after(at - 1, killed)]
    counts = {"resumed at step": at, "rows": len(found), "measured in the next step": int(errors[0] != errors[1])}
    for name in ("quantizer/eta", "loss/total"):
        gaps = [abs(one[name] - other[name]) for one, other in zip(found, expected, strict=True)]
        counts |= {f"{name}, unequal": sum(gap > 0 for gap in gaps), f"{name}, largest difference": max(gaps)}
    return counts


def _losses_after(step: int, folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss/total" in row and row["step"] > step]


def ranks(session: Session) -> None:
    """What a job's collectives cost: with one rank that is forced to make them, and with two ranks on one device."""
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
