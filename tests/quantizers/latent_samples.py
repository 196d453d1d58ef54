"""Distributions of latents that the statistical tests draw from, and a two-sample statistic."""

import torch
from torch import Tensor


def mixture(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Two Gaussians, unequal in weight and width: 70% wide around -1, 30% narrow around 2."""
    first = torch.rand(count, 1, generator=generator) < 0.7
    noise = torch.randn(count, dim, generator=generator)
    return torch.where(first, noise - 1, 0.4 * noise + 2)


def gaussian(count: int, dim: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, dim, generator=generator)


def laplace(count: int, dim: int, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(count, dim, generator=generator).clamp(1e-6, 1 - 1e-6) - 0.5
    return -uniform.sign() * torch.log1p(-2 * uniform.abs()) / 2**0.5


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X-Y| - E|X-X'| - E|Y-Y'| without the terms of a point with itself: 0 on average for equal distributions."""
    n, m = len(x), len(y)
    within_x = torch.cdist(x, x).double().sum() / (n * (n - 1))
    within_y = torch.cdist(y, y).double().sum() / (m * (m - 1))
    return float(2 * torch.cdist(x, y).double().mean() - within_x - within_y)
