"""One step of training."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vpvae_hf.losses import RECONSTRUCTION_LOSSES


def training_step(
    model,
    pixel_values: Tensor,
    optimizer: torch.optim.Optimizer,
    loss_weights: Mapping[str, float],
    max_grad_norm: float,
) -> dict[str, Tensor]:
    """Forward, backward and update, eq. (10): weighted reconstruction losses and the quantizer's own loss.

    Args:
        model: a tokenizer in train mode, called through `forward`.
        pixel_values: [B, C, H, W] in [-1, 1].
        loss_weights: weight of each loss by its name in `RECONSTRUCTION_LOSSES`.

    Returns:
        Detached scalars: "loss/total", "loss/<name>", "loss/quantizer", "gradient_norm" and the quantizer's metrics.
    """
    output = model(pixel_values)
    losses = {name: RECONSTRUCTION_LOSSES[name](output.sample, pixel_values) for name in loss_weights}
    total = sum(weight * losses[name] for name, weight in loss_weights.items()) + output.loss
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    named = {f"loss/{name}": loss.detach() for name, loss in losses.items()}
    return {
        "loss/total": total.detach(),
        **named,
        "loss/quantizer": output.loss.detach(),
        "gradient_norm": gradient_norm,
        **output.metrics,
    }
