"""Distances between a reconstruction and its original."""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

# Name -> function of (reconstruction, original), both of one shape; gives [].
RECONSTRUCTION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1_loss, "l2": mse_loss}
