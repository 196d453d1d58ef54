"""Stages about the machine and the kernels: environment, correctness, search, index."""

import importlib.metadata
import itertools
import subprocess
import sys
import time
from pathlib import Path

import torch
from measuring import Session

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("torch", "triton", "transformers", "accelerate", "diffusers", "datasets", "pykdtree", "flash-kmeans")


def environment(session: Session) -> None:
    """Versions, and the hardware limits with which other figures are compared."""
    for name in _PACKAGES:
        session.figure(f"version of {name}", "", lambda name=name: importlib.metadata.version(name))
    session.figure("device", "", lambda: _device(session))
    count = session.pick(1 << 28, 1 << 16)
    milliseconds = session.time("copy of 1 GiB", lambda: _copy(session, count))
    session.figure("copy, read and write", "GB/s", lambda: 8e-6 * count / milliseconds)
    side = session.pick(8192, 64)
    shape = {"device": session.device, "dtype": torch.bfloat16}
    left, right = torch.randn(4, side, side, **shape), torch.randn(side, side, **shape)
    milliseconds = session.time(f"bf16 product of {side} x {side}", lambda: lambda turn: left[turn % 4] @ right)
    session.figure("bf16 product", "TFLOP/s", lambda: 2e-9 * side**3 / milliseconds)


def _copy(session: Session, count: int):
    source, target = torch.ones(count, device=session.device), torch.empty(count, device=session.device)
    return lambda turn: target.copy_(source)


def _device(session: Session) -> str:
    if not session.on_cuda:
        return str(session.device)
    properties = torch.cuda.get_device_properties(session.device)
    size = f"{properties.multi_processor_count} multiprocessors, {properties.total_memory / 2**30:.0f} GiB"
    return f"{properties.name}, sm_{properties.major}{properties.minor}, {size}, CUDA {torch.version.cuda}"


def correctness(session: Session) -> None:
    """Whether the GPU gives what the CPU gives: by the package's own tests, and for each kind of quantizer."""
    if not session.quick:
        session.figure("tests/neighbors/test_cuda.py", "", lambda: _tests("tests/neighbors/test_cuda.py"))
        session.figure("compute-sanitizer on one search", "", lambda: _sanitized())
    sys.path.insert(0, str(_ROOT / "tests"))
    session.figure("codes that differ from the CPU's", "", lambda: _quantizers(session))
    session.figure("training forwards that are finite", "", lambda: _training_forwards(session))
    for kind in ("image", "audio"):
        name = f"codes unlike the CPU's, both exact, {kind}"
        session.figure(name, "share", lambda kind=kind: _exact(session, kind))
    session.figure("float32 product within TF32, relative error", "", lambda: _product_error(session))
    for dim in session.pick(range(1, 9), (4,)):
        session.figure(f"kernels unlike torch, d={dim}", "", lambda dim=dim: _kernels_unlike_torch(session, dim))


def _tests(file: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", file]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=240)
    print(done.stdout[-6000:], done.stderr[-2000:])
    return (done.stdout.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def _sanitized() -> str:
    program = (
        "import torch; from vpvae_hf.neighbors import build_index; p = torch.randn(4096, 4, device='cuda'); "
        "print(build_index(p).distances(p[:64], (8, 64)).sum())"
    )
    command = ["compute-sanitizer", "--error-exitcode", "9", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    print(done.stdout[-3000:])
    return f"exit status {done.returncode}"


def _quantizers(session: Session) -> dict[str, int]:
    """The number of differing codes of 50,000 latents, by variant."""
    from tiny import QUANTIZER_SETTINGS, fit_to, is_fitted
    from vpvae_hf import build_quantizer

    count, found = session.pick(50_000, 500), {}
    for name, settings in QUANTIZER_SETTINGS.items():
        torch.manual_seed(0)
        quantizer = build_quantizer(settings).eval()
        if not quantizer.has_codes or settings.get("kmeans_start"):
            continue
        latents = torch.randn(count, quantizer.latent_dim)
        if is_fitted(quantizer):
            fit_to(quantizer, torch.randn(quantizer.codebook_size, quantizer.latent_dim))
        codes = quantizer.encode(latents)
        there = quantizer.to(session.device).encode(latents.to(session.device))
        found[name] = int((there.cpu() != codes).sum())
    return found


def _training_forwards(session: Session) -> str:
    from tiny import QUANTIZER_SETTINGS
    from vpvae_hf import build_quantizer

    good = 0
    for settings in QUANTIZER_SETTINGS.values():
        torch.manual_seed(0)
        quantizer = build_quantizer(settings).to(session.device).train()
        for turn in range(session.pick(3, 1)):
            features = session.normal(512, quantizer.config.feature_dim, seed=turn).requires_grad_()
            output = quantizer(features)
            (output.latents.square().mean() + output.loss).backward()
        good += bool(torch.isfinite(output.latents).all() and torch.isfinite(features.grad).all())
    return f"{good} of {len(QUANTIZER_SETTINGS)}"


def _exact(session: Session, kind: str) -> float:
    """The share of differing codes, of images or of clips padded to one length."""
    import numpy as np
    from paths import _tokenizer
    from steps import _codec

    from vpvae_hf.modalities import MODALITIES, Execution

    square = torch.ones(64, 64, device=session.device)
    square @ square  # cuBLAS may have been used before
    random, modality = torch.Generator().manual_seed(0), MODALITIES[kind]
    if kind == "image":
        side = session.pick(256, 16)
        model, settings = _tokenizer(torch.device("cpu"), session.quick), {"size": side}
        items = list(torch.randint(256, (4, side, side, 3), dtype=torch.uint8, generator=random))
    else:
        model, settings = _codec(session), {}
        items = [0.1 * torch.randn(length, generator=random) for length in session.pick((32000, 8000, 500), (960, 200))]
    transform = modality.eval_transform(modality.data_config(model, **settings), model)
    codes = []
    for device in ("cpu", str(session.device)):
        execution = Execution(exact=True, device=device)
        execution.prepare(model)
        with execution.running():
            rows = next(modality.code_rows([items], transform, model, len(items)))
        codes.append(np.concatenate([row["codes"].ravel() for row in rows]))
    return float((codes[0] != codes[1]).mean())


def _product_error(session: Session) -> dict[str, float]:
    """The largest error of sums of positive products; "high" is what TF32 gives."""
    from vpvae_hf.tensors import float32_products

    size = session.pick(4096, 64)
    bias, left, right = (session.normal(*shape).abs() + 0.1 for shape in ((size,), (size, 16), (16, size)))
    truth = torch.addmm(bias.double(), left.double(), right.double())
    found = {}
    for precision in ("highest", "high"):
        with float32_products("high"), float32_products(precision):
            product = torch.addmm(bias, left, right)
        found[precision] = float(((product - truth).abs() / truth).max())
    return found


def _kernels_unlike_torch(session: Session, dim: int) -> dict[str, int]:
    """The number of distances that differ by more than rounding, with either capacity, and of such nearest points."""
    from vpvae_hf.neighbors import build_index, nearest_point
    from vpvae_hf.neighbors.brute_force import direct_distances
    from vpvae_hf.neighbors.cuda import runs_kernels

    points, queries = session.normal(session.pick(16384, 1024) * dim, dim), session.normal(512, dim, seed=1)
    index, truth, found = build_index(points), build_index(points, "torch"), {}
    for capacity, ranks in ((512, (8, 128)), (1024, (8, 256))):
        distances, expected = index.distances(queries, ranks), truth.distances(queries, ranks)
        found[f"capacity {capacity}"] = int((~distances.isclose(expected, rtol=1e-6, atol=0)).sum())
    codes = points[:1024]
    distances, indices = nearest_point(queries, codes)
    expected = direct_distances(queries, codes).min(dim=1)
    found["nearest"] = int((~distances.isclose(expected.values, rtol=1e-6, atol=0)).sum())
    found["nearest, index"] = int((indices != expected.indices).sum())
    if session.on_cuda and not runs_kernels(session.device):
        raise RuntimeError("a kernel could not be launched, and torch replaced it; see the log")
    return found


def search(session: Session) -> None:
    """Distances at the ranks 8 and M = 16 d in a queue of 16 d K latents, and the nearest of K codes."""
    sizes = session.pick((1024, 4096, 16384, 65536, 262144), (64,))
    dims = session.pick((3, 4, 5, 8, 16), (4,))
    for size, dim in itertools.product(sizes, dims):
        _ranked(session, size, dim, session.pick(8192, 64), "normal")
        _nearest(session, size, dim, session.pick(8192, 64))
    for size, dim in session.pick(((1024, 4), (16384, 5), (65536, 5)), ((64, 4),)):
        for queries in session.pick((1024, 32768), (32,)):
            _ranked(session, size, dim, queries, "normal")
            _nearest(session, size, dim, queries)
        for points in ("clustered", "shifted", "rounded to bf16", "half a queue"):
            _ranked(session, size, dim, session.pick(8192, 64), points)
    _ranked(session, *session.pick((1024, 16, 8192), (64, 16, 32)), "a tenth in narrow clusters")
    for points in ("normal", "a tenth in narrow clusters"):
        session.figure(f"unproven queries, d=16, {points}", "share", lambda points=points: _unproven(session, points))
    for size, dim in session.pick(((1024, 4), (1024, 16), (16384, 5)), ((64, 4),)):
        _other_ways(session, size, dim, session.pick(8192, 64))


def _points(session: Session, size: int, dim: int, how: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A queue, and four times 2^15 queries of the same distribution."""
    count = 16 * dim * size // (2 if how == "half a queue" else 1)
    points, queries = session.normal(count, dim), session.normal(4 << 15, dim, seed=1)
    if how == "clustered":
        centers = 3 * session.normal(64, dim, seed=2)
        points, queries = (0.1 * each + centers[torch.arange(len(each)) % 64] for each in (points, queries))
    if how == "a tenth in narrow clusters":
        centers = session.normal(64, dim, seed=2)
        for each in (points, queries):
            each[::10] = 0.002 * each[::10] + centers[torch.arange(len(each[::10])) % 64]
    if how == "shifted":
        queries = queries + 1.5
    if how == "rounded to bf16":
        points, queries = points.bfloat16().float(), queries.bfloat16().float()
    return points, queries


def _ranked(session: Session, size: int, dim: int, count: int, how: str) -> None:
    def make():
        from vpvae_hf.neighbors import build_index

        points, queries = _points(session, size, dim, how)
        index, parts = build_index(points), queries.split(count)
        return lambda turn: index.distances(parts[turn % 4], (8, 16 * dim))

    session.time(f"ranked, K={size} d={dim}, {count} queries, {how}", make)


def _unproven(session: Session, how: str) -> float:
    """The share of queries that TorchIndex has to compare with all points."""
    from vpvae_hf.neighbors import build_index
    from vpvae_hf.tensors import float32_products

    points, queries = _points(session, session.pick(1024, 64), 16, how)
    with float32_products("highest"):
        _, proven = build_index(points, "torch")._of_candidates(queries[:200], 256)
    return float((~proven).float().mean())


def _nearest(session: Session, size: int, dim: int, count: int) -> None:
    def make():
        from vpvae_hf.neighbors import nearest_point

        points, queries = session.normal(size, dim), session.normal(4, count, dim, seed=1)
        return lambda turn: nearest_point(queries[turn % 4], points)

    session.time(f"nearest, K={size} d={dim}, {count} queries", make)


def _other_ways(session: Session, size: int, dim: int, count: int) -> None:
    """Other ways on the same points, in blocks of 1,024 queries, whose distances fit into memory."""
    points, queries = _points(session, size, dim, "normal")
    codes, rank, squares = points[:size], 16 * dim, points.square().sum(dim=1)
    where = f"K={size} d={dim}, {count} queries"

    def in_blocks(one_block):
        return lambda: lambda turn: [one_block(part) for part in queries[(turn % 4) * count :][:count].split(1024)]

    def product(part):
        return (squares - 2 * part @ points.T).topk(rank, largest=False)

    def torch_index():
        from vpvae_hf.neighbors import build_index

        index = build_index(points, "torch")
        return lambda turn: index.distances(queries[(turn % 4) * count :][:count], (8, rank))

    def flash_kmeans():
        from flash_kmeans.assign_euclid_triton import euclid_assign_triton

        parts = queries.view(4, 1, -1, dim)[:, :, :count].contiguous()
        norms = parts.square().sum(dim=-1)
        return lambda turn: euclid_assign_triton(parts[turn % 4], codes[None].contiguous(), norms[turn % 4])

    session.time(f"ranked by TorchIndex, {where}", torch_index)
    session.time(
        f"ranked by cdist + topk, {where}", in_blocks(lambda part: torch.cdist(part, points).topk(rank, largest=False))
    )
    session.time(f"ranked by product + topk, {where}", in_blocks(product))
    session.time(f"nearest by cdist, {where}", in_blocks(lambda part: torch.cdist(part, codes).min(dim=1)))
    session.time(f"nearest by flash-kmeans, {where}", flash_kmeans)


def index(session: Session) -> None:
    """The time to make the index, what the queue costs in a step, and the memory of both."""
    for size, dim in session.pick(((1024, 4), (16384, 5), (65536, 5), (65536, 16)), ((64, 4),)):
        where = f"K={size} d={dim}"
        session.time(f"build of the index, {where}", lambda size=size, dim=dim: _build(session, size, dim))
        session.figure(
            f"peak memory of a build, {where}",
            "MiB above the queue",
            lambda size=size, dim=dim: session.peak_mib(lambda: _build(session, size, dim)(0)),
        )
        session.figure(
            f"Lloyd step of the live codebook, {where}", "s", lambda size=size, dim=dim: _lloyd_step(session, size, dim)
        )
        for name in ("push", "latents", "draw"):
            session.time(
                f"queue, {name}, {where}", lambda name=name, size=size, dim=dim: _queue(session, name, size, dim)
            )


def _build(session: Session, size: int, dim: int):
    from vpvae_hf.neighbors import build_index

    points = session.normal(16 * dim * size, dim)
    return lambda turn: build_index(points)


def _lloyd_step(session: Session, size: int, dim: int) -> float:
    from vpvae_hf import build_quantizer

    quantizer = build_quantizer({"kind": "vp", "codebook_size": size, "latent_dim": dim})
    quantizer.queue.push(session.normal(16 * dim * size, dim))
    latents = session.normal(8, dim)
    quantizer.live.update(quantizer.queue, latents.device)
    session.wait()
    started = time.perf_counter()
    for _ in range(10):  # only one of them does the work
        quantizer.live.update(quantizer.queue, latents.device)
    session.wait()
    return time.perf_counter() - started


def _queue(session: Session, name: str, size: int, dim: int):
    from vpvae_hf import build_quantizer

    queue = build_quantizer({"kind": "vp", "codebook_size": size, "latent_dim": dim}).queue
    queue.push(session.normal(queue.capacity, dim))
    new = session.normal(328, dim, seed=1)
    ways = {
        "push": lambda turn: queue.push(new),
        "latents": lambda turn: queue.latents(),
        "draw": lambda turn: queue.draw(size, session.device),
    }
    return ways[name]
