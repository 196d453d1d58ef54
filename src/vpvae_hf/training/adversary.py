"""A discriminator that is trained beside the tokenizer, with its optimizer."""

import torch
from accelerate import Accelerator
from torch import Tensor

from vpvae_hf.losses import PatchDiscriminator, discriminator_loss, generator_loss

from .config import AdversarialConfig


class Adversary:
    """Holds discriminator and optimizer, both prepared, so that checkpoints hold them too.

    Args:
        channels: C of the images.
        betas: of AdamW.
    """

    def __init__(self, config: AdversarialConfig, channels: int, betas: tuple[float, float], accelerator: Accelerator):
        discriminator = PatchDiscriminator(channels, config.channels, config.layers)
        optimizer = torch.optim.AdamW(discriminator.parameters(), lr=config.learning_rate, betas=betas)
        self.discriminator, self._optimizer = accelerator.prepare(discriminator, optimizer)
        self._accelerator = accelerator

    def judge(self, images: Tensor) -> Tensor:
        """The tokenizer's adversarial loss for reconstructions [B, C, H, W]; its gradient stops at the images."""
        # Without the wrapper of several ranks, which would share gradients that nobody uses.
        network = self._accelerator.unwrap_model(self.discriminator).requires_grad_(False)
        with self._accelerator.autocast():
            loss = generator_loss(network(images).float())
        network.requires_grad_(True)
        return loss

    def learn(self, real: Tensor, made: Tensor) -> Tensor:
        """Train the discriminator on originals and detached reconstructions, each [B, C, H, W]; gives its loss."""
        # In one pass: a wrapper of several ranks allows one forward for each backward.
        logits = self.discriminator(torch.cat([real, made.detach().to(real.dtype)])).float()
        loss = discriminator_loss(*logits.chunk(2))
        self._accelerator.backward(loss)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()
