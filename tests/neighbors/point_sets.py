"""What the tests of the searches share: points, the answer in float64, and the backends that can run here."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from vpvae_hf.neighbors import BACKENDS, build_index
from vpvae_hf.neighbors.cuda import has_triton

needs_triton = pytest.mark.skipif(
    not has_triton(), reason="runs CUDA kernels, which needs triton: `make interpreter` installs it"
)
ALL_BACKENDS = [pytest.param(name, marks=needs_triton) if name == "triton" else name for name in BACKENDS]
EXACT_BACKENDS = [backend for backend in ALL_BACKENDS if backend != "faiss"]
# Where the kernels run: without a GPU in triton's interpreter.
KERNEL_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_distances(queries: Tensor, points: Tensor) -> np.ndarray:
    """[N, S] in float64."""
    squares = np.zeros((len(queries), len(points)))
    for query, point in zip(queries.double().T.numpy(), points.double().T.numpy(), strict=True):
        squares += (query[:, None] - point[None, :]) ** 2
    return np.sqrt(squares)


def brute_force(queries: Tensor, points: Tensor, ranks: Sequence[int]) -> np.ndarray:
    """[N, R] in float64."""
    columns = np.array(ranks) - 1
    return np.partition(all_distances(queries, points), columns, axis=1)[:, columns]


def search(points: Tensor, backend: str, queries: Tensor, ranks: Sequence[int]) -> Tensor:
    """[N, R] on the CPU, by a backend where it runs."""
    device = KERNEL_DEVICE if backend == "triton" else "cpu"
    return build_index(points.to(device), backend).distances(queries.to(device), ranks).cpu()


def affordable(queries: Tensor, backend: str) -> Tensor:
    """All queries, or the few that triton's interpreter, which takes 0.3 s for each, searches in reasonable time."""
    return queries[:2] if backend == "triton" else queries
