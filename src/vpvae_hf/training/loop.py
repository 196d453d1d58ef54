"""The training loop of one process: enough for a tokenizer on one device."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vpvae_hf.codebook import fit_kmeans
from vpvae_hf.evaluation import ReconstructionQuality, evaluate_reconstruction

from .step import training_step

# A preview codebook shows how training goes; the one that is published is fitted more carefully, to fresh latents.
_PREVIEW_ITERATIONS = 10


@dataclass(frozen=True)
class TrainingHistory:
    """What was measured while training.

    Attributes:
        steps: for each step the scalars of `training_step`, as floats.
        validations: pairs of a step and the quality on the validation batches then.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    validations: list[tuple[int, ReconstructionQuality]] = field(default_factory=list)


def train(
    model,
    batches: Iterator[Tensor],
    *,
    steps: int,
    learning_rate: float,
    validation_batches: Iterable[Tensor],
    validate_every: int,
    loss_weights: Mapping[str, float] = MappingProxyType({"l1": 1.0}),
    warmup_share: float = 0.02,
    max_grad_norm: float = 1.0,
    progress: bool = True,
) -> TrainingHistory:
    """Train with AdamW, a linear warm-up and a cosine decay to zero; leaves the model in train mode.

    Args:
        model: a tokenizer.
        batches: endless batches [B, C, H, W] in [-1, 1].
        steps: how many of them to take.
        learning_rate: the highest.
        validation_batches: gone through at each validation; an iterable that can be started again.
        validate_every: steps between validations; one more follows the last step.
        loss_weights: weight of each reconstruction loss by name; L1 alone by default.
        warmup_share: share of the steps in which the learning rate rises.
        max_grad_norm: gradients are scaled down to this norm.
        progress: show a bar with the time left on stderr.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    warmup = max(1, round(warmup_share * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, warmup, steps))
    history = TrainingHistory()
    model.train()
    with tqdm(total=steps, desc="Training", unit="step", disable=not progress) as bar:
        for step in range(1, steps + 1):
            metrics = training_step(model, next(batches).to(device), optimizer, loss_weights, max_grad_norm)
            schedule.step()
            history.steps.append({name: float(value) for name, value in metrics.items()})
            if step % validate_every == 0 or step == steps:
                quality = _validate(model, validation_batches)
                if quality is not None:
                    history.validations.append((step, quality))
                    bar.set_postfix(psnr=f"{quality.psnr:.2f} dB", cvu=f"{quality.code_usage:.2f}")
            bar.update()
    return history


def _validate(model, batches: Iterable[Tensor]) -> ReconstructionQuality | None:
    """Quality with the codebook that the queue would give now; None while the queue is too short for one."""
    quantizer = model.quantize
    if not quantizer.needs_fitting:
        return evaluate_reconstruction(model, batches)
    latents = quantizer.queue.latents()
    if len(torch.unique(latents, dim=0)) < quantizer.codebook_size:
        return None
    preview = fit_kmeans(latents, quantizer.codebook_size, max_iterations=_PREVIEW_ITERATIONS)
    return evaluate_reconstruction(model, batches, preview.centroids)


def _rate(step: int, warmup: int, steps: int) -> float:
    """Share of the highest learning rate at a step counted from 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
