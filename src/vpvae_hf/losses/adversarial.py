"""The losses of a tokenizer and the discriminator that trains against it.

A discriminator is a module whose forward pass gives logits, which are higher if the input looks or sounds real. Its
`judge` gives the logits and the features of its layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import relu


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss of the discriminator: Lim & Ye 2017, arXiv 1705.02894; halved as in Esser et al. 2021; [].

    (E[max(0, 1 - D(x))] + E[max(0, 1 + D(x_hat))]) / 2: 1 at logits of zero, 0 if every logit is beyond its margin.
    Logits D(x) are of originals, D(x_hat) of reconstructions that are detached from their model; any shape.
    """
    return (relu(1 - real_logits).mean() + relu(1 + fake_logits).mean()) / 2


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Hinge loss of the model that makes the reconstructions, -E[D(x_hat)]: Lim & Ye 2017; VQGAN (Esser et al. 2021).

    [], without a lower bound; its weight sets its scale relative to other losses. Reconstructions are not detached.
    """
    return -fake_logits.mean()


def feature_matching_loss(real_features: Sequence[Tensor], fake_features: Sequence[Tensor]) -> Tensor:
    """[] L1 between the features of originals and reconstructions, relative to the originals', mean over the layers.

    Défossez et al. 2022, arXiv 2210.13438, eq. (2). Features of one layer have one shape; the originals' get no
    gradient.
    """
    pairs = zip(real_features, fake_features, strict=True)
    return torch.stack([(fake - real).abs().mean() / real.abs().mean() for real, fake in pairs]).mean()
