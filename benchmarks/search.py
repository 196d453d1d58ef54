"""Exact search of neighbour distances: the k-d tree against the straightforward torch search, and how long it takes.

Run with `make bench`. Both sides take turns in one process; times are medians, and the ratio is what counts.
"""

import statistics
import time

import torch

from vpvae_hf.neighbors import build_index

QUERIES, DIM, ROUNDS = 2048, 4, 3
RANKS = (8, 16 * DIM)


def timed_search(points: torch.Tensor, queries: torch.Tensor, backend: str) -> tuple[float, torch.Tensor]:
    """Seconds to build and search, and the distances found."""
    started = time.perf_counter()
    distances = build_index(points, backend).distances(queries, RANKS)
    return time.perf_counter() - started, distances


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(QUERIES, DIM, generator=generator)
    print(f"Distances at ranks {RANKS} for {QUERIES} queries, d={DIM}; building the index included")
    print("| K | queue | torch, s | k-d tree, s | ratio | greatest relative difference |")
    print("|---|---|---|---|---|---|")
    for codes in (256, 1024):
        points = torch.randn(16 * DIM * codes, DIM, generator=generator)
        found, times = {}, {"torch": [], "kdtree": []}
        for _ in range(ROUNDS):
            for backend, taken in times.items():
                duration, found[backend] = timed_search(points, queries, backend)
                taken.append(duration)
        slow, fast = (statistics.median(times[backend]) for backend in ("torch", "kdtree"))
        difference = float((found["kdtree"] / found["torch"] - 1).abs().max())
        print(f"| {codes} | {len(points)} | {slow:.3f} | {fast:.3f} | {slow / fast:.1f} | {difference:.1e} |")


if __name__ == "__main__":
    main()
