"""How much a token's latent matters to the decoder's output. Shapes: tokens at *grid positions, d latent dimensions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vpvae_hf import distributed

from .tokenizer import Tokenizer

# Eigenvalues below this share of the largest are raised to it, so that every displacement counts.
_LEAST_EIGENVALUE = 0.01


@torch.no_grad()
def decoder_metric(
    model: Tokenizer, latents: Sequence[Tensor], displacement: float, *, seed: int = 0, across_ranks: bool = False
) -> Tensor:
    """M [d, d] float64 on the CPU: if a latent moves by v, the output's squared change is proportional to v^T M v.

    M = E[J^T J], scaled so that its trace is d, where J is the derivative of the whole output with respect to one
    token's latent. All tokens are displaced at once along one axis, forward and back, each with a random sign; the
    tokens' effects on each other's output cancel out on average. The latents are decoded 2 d times for this. With some
    16,000 tokens, M is known within a few percent.

    Args:
        model: in eval mode.
        latents: batches [B, *grid, d], as `latent_vectors` gives them.
        displacement: how far a latent is displaced along an axis: about the quantization error in one dimension.
        seed: seed of the signs. The same latents and seed give the same metric.
        across_ranks: measure one M from all ranks' latents, equal on all of them. Every rank must make this call.

    Raises:
        ValueError: the output does not depend on the latents, or is not finite.
    """
    d = latents[0].shape[-1]
    products = torch.zeros(d, d, dtype=torch.float64, device="cpu")
    generator = torch.Generator("cpu").manual_seed((seed + 0x9E3779B1 * distributed.rank() * across_ranks) % 2**32)
    with distributed.failing_together(across_ranks):
        for batch in latents:
            signs = torch.randint(0, 2, (*batch.shape[:-1], 1), generator=generator, device="cpu") * 2.0 - 1
            products += _products(model, batch, displacement * signs.to(batch))
    if across_ranks:
        products = distributed.sum_over_ranks(products)
    trace = float(products.trace())
    if not 0 < trace < math.inf:
        raise ValueError(
            f"the sum of squared changes of the decoder's output for displaced latents is {trace:g}, so it "
            'measures no metric; train the decoder first, or use metric="euclidean"'
        )
    values, vectors = torch.linalg.eigh(products)
    values = values.clamp(min=_LEAST_EIGENVALUE * float(values[-1]))
    metric = (vectors * (values * d / values.sum())) @ vectors.mT
    metric = (metric + metric.mT) / 2
    return distributed.from_first_rank(metric) if across_ranks else metric


def _products(model: Tokenizer, latents: Tensor, moves: Tensor) -> Tensor:
    """Inner products [d, d] float64 of the output's changes due to moves [B, *grid, 1] along each axis."""
    d = latents.shape[-1]
    changes = []
    for axis in torch.eye(d, dtype=latents.dtype, device=latents.device):
        forth, back = (model.decode_vectors(latents + sign * moves * axis) for sign in (1, -1))
        changes.append((forth.float() - back.float()).flatten())
    # In float32, like the changes: rounding is far smaller than the error from so few random signs.
    products = [[torch.dot(one, other) for other in changes] for one in changes]
    return torch.stack([torch.stack(row) for row in products]).to("cpu", torch.float64)
