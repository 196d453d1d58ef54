"""Displacements that stand for quantization error, eqs. (3) to (9).

Shapes: N latents z of dimension d; S the queue of recent latents; R(z) a radius, D_m(z) the distance from z to its
m-th nearest neighbour in S.
"""

import torch
from torch import Tensor

from vpvae_hf.neighbors import NeighborIndex, nearest_point


def uniform_in_ball(
    shape: torch.Size, device: torch.device | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Points uniform in the unit d-ball, eq. (5): shape [..., d], float32."""
    direction = torch.nn.functional.normalize(
        torch.randn(shape, device=device, dtype=torch.float32, generator=generator), dim=-1
    )
    rho = torch.rand(*shape[:-1], 1, device=device, dtype=torch.float32, generator=generator)
    return direction * rho ** (1 / shape[-1])


def acceptance_probability(
    near: Tensor, radius: Tensor, near_proposed: Tensor, radius_proposed: Tensor, move: Tensor, dim: int
) -> Tensor:
    """Metropolis-Hastings acceptance [N] of z -> z' for density ~ D_k^-d and a uniform ball of radius R.

    Zero if the reverse move is impossible, eq. (7): |z - z'| > R(z'). Otherwise eq. (8), with the radii in place of the
    D_M that they are proportional to: min(1, (D_k(z) R(z) / (D_k(z') R(z')))^d).

    Args:
        near, radius, near_proposed, radius_proposed, move: D_k(z), R(z), D_k(z'), R(z') and |z - z'|, each [N].
    """
    tiny = torch.finfo(near.dtype).tiny  # among copies of one latent distances are zero
    log_ratio = sum(x.clamp_min(tiny).log() for x in (near, radius))
    log_ratio = log_ratio - sum(x.clamp_min(tiny).log() for x in (near_proposed, radius_proposed))
    probability = (dim * log_ratio).clamp_max(0).exp()
    return torch.where(move > radius_proposed, 0.0, probability)


def metropolis(
    latents: Tensor,
    index: NeighborIndex,
    *,
    density_rank: int,
    mass_rank: int,
    eta: float | Tensor,
    always_accept: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """One step that leaves the latents' distribution as it is, eqs. (3) to (9).

    Args:
        latents: [N, d] float32, detached and finite, which is not checked.
        index: over the queue.
        density_rank, mass_rank: k and M.
        eta: scale of the radius, eq. (3): R(z) = eta * D_M(z).
        always_accept: accept every proposal, without a second search: the ablation without Metropolis-Hastings.

    Returns:
        Perturbed latents [N, d] and which proposals were accepted, [N] bool.
    """
    ranks = density_rank, mass_rank
    distances = index.distances_unchecked(latents, ranks)
    near, radius = distances[:, 0], eta * distances[:, 1]
    proposed = latents + radius[:, None] * uniform_in_ball(latents.shape, latents.device, generator)
    if always_accept:
        return proposed, torch.ones(len(latents), dtype=torch.bool, device=latents.device)
    near_proposed, far_proposed = index.distances_unchecked(proposed, ranks).unbind(1)
    move = (proposed - latents).norm(dim=-1)
    probability = acceptance_probability(near, radius, near_proposed, eta * far_proposed, move, latents.shape[-1])
    accepted = torch.rand(len(latents), device=latents.device, dtype=torch.float32, generator=generator) < probability
    return torch.where(accepted[:, None], proposed, latents), accepted


def random_codebook(latents: Tensor, codebook: Tensor, share: float | Tensor) -> tuple[Tensor, Tensor]:
    """Latents [N, d], each moved a share of the way to the nearest of K latents [K, d] drawn from the queue.

    The drawn latents have the latents' own density and make cells of mass 1/K, so the moves have the directions and
    lengths of a quantization with K codes. A random codebook has a larger error than a fitted one, which a share below
    1 makes up for; the share is in (0, 1].

    Returns:
        Moved latents [N, d], and the drawn latents [N, d] that they were moved towards.
    """
    _, nearest = nearest_point(latents, codebook)
    drawn = codebook[nearest]
    return latents + share * (drawn - latents), drawn
