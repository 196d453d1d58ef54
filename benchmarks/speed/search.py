"""Distances to the k-th and M-th nearest latents of a queue."""

import torch
from measuring import DIMENSIONS, TOKENS, Table, peak_memory, timed

from vpvae_hf.neighbors import BACKENDS, build_index

_DENSITY_RANK = 8
# Above so many distances, the ways that compute all of them are timed on a part of the queries.
_MOST_DISTANCES = 1e9


def compare(sizes: list[int], rounds: int, device: torch.device) -> list[Table]:
    table = Table(
        "Search",
        f"Distances of {TOKENS} queries at the ranks {_DENSITY_RANK} and M = 16 d in a queue of 16 d K latents, all "
        "standard normal; the index is built anew each time. Ways that compute all distances are timed on a part of "
        "the queries if there are over a thousand million.",
    )
    for size in sizes:
        _add(table, size, rounds, device)
    return [table]


def _add(table: Table, size: int, rounds: int, device: torch.device) -> None:
    dim = DIMENSIONS[size]
    generator = torch.Generator(device).manual_seed(0)
    queue = torch.randn(16 * dim * size, dim, generator=generator, device=device)
    queries = torch.randn(TOKENS, dim, generator=generator, device=device)
    ranks = (_DENSITY_RANK, 16 * dim)
    ours = "triton" if device.type == "cuda" else "kdtree"
    part = TOKENS
    while device.type == "cpu" and part * len(queue) > _MOST_DISTANCES:
        part //= 2

    # Measured first: memory that other searches leave behind would hide a part of it.
    memory = peak_memory(lambda: build_index(queue, ours).distances(queries, ranks), device)
    exact = build_index(queue, ours).distances(queries, ranks)
    building, index = timed(lambda: build_index(queue, ours))

    def remarks(way: str, found: torch.Tensor) -> str:
        if way == f"ours: {ours}":
            return f"{building:.3g} s of it building; {memory / 2**20:.0f} MiB above the queue"
        error = found[:, 1] / exact[: len(found), 1] - 1
        remark = f"D_M off by {float(error.mean()):.1e} on average, {float(error.abs().max()):.1e} at most"
        return remark + (f"; timed on {len(found)} queries" if len(found) < TOKENS else "")

    ways = {
        f"ours: {ours}": lambda: build_index(queue, ours).distances(queries, ranks),
        f"ours: {ours}, index kept": lambda: index.distances(queries, ranks),
        "ours: faiss IVF, approximate": lambda: BACKENDS["faiss"](queue).distances(queries, ranks),
        "torch, cdist + topk": lambda: _straightforward(queries[:part], queue, ranks),
        "ours: torch, matrix products and direct differences": lambda: build_index(queue, "torch").distances(
            queries[:part], ranks
        ),
        "faiss flat": lambda: _faiss_flat(queries[:part], queue, ranks),
    }
    if device.type == "cuda":  # these would run on the CPU, for minutes
        ways = {name: way for name, way in ways.items() if "faiss" not in name}
    scales = dict.fromkeys(
        ("torch, cdist + topk", "ours: torch, matrix products and direct differences", "faiss flat"), TOKENS / part
    )
    table.add(size, ways, rounds, scales=scales, remarks=remarks)


def _straightforward(queries: torch.Tensor, queue: torch.Tensor, ranks: tuple[int, ...]) -> torch.Tensor:
    """What one would write first: the distance matrix in blocks of queries, and its smallest entries."""
    columns = torch.tensor(ranks, device=queue.device) - 1
    blocks = queries.split(max(1, (1 << 26) // len(queue)))
    nearest = [torch.cdist(block, queue).topk(max(ranks), largest=False).values[:, columns] for block in blocks]
    return torch.cat(nearest)


def _faiss_flat(queries: torch.Tensor, queue: torch.Tensor, ranks: tuple[int, ...]) -> torch.Tensor:
    import faiss

    squares, _ = faiss.knn(queries.cpu().numpy(), queue.cpu().numpy(), max(ranks))
    columns = torch.tensor(ranks) - 1
    return torch.from_numpy(squares).clamp_min(0).sqrt()[:, columns].to(queries.device)
