"""The queue S of recent latents, among which vector perturbation measures distances."""

import torch
from torch import Tensor

from vpvae_hf.tensors import kept_for_training


class LatentQueue:
    """First-in first-out store of detached latents: training state, never part of published weights.

    Storage is allocated in the first push, on the latents' device, so that a model can be built on the meta device.

    Attributes:
        capacity: the most latents kept.
        pushed: how many latents were ever pushed; the difference between two times is how many are new.
    """

    def __init__(self, capacity: int, dim: int):
        self.capacity, self.dim, self.pushed = capacity, dim, 0
        self._clear()

    def _clear(self) -> None:
        self._storage: Tensor | None = None
        self._size = self._next = 0

    def __len__(self) -> int:
        return self._size

    @kept_for_training()
    def push(self, latents: Tensor) -> None:
        """Append [N, d] latents in order; the oldest leave when the queue is full.

        A latent that is NaN or infinite is replaced by a copy of one that the queue holds.
        """
        latents = latents.detach().float()
        if not self._size:
            latents = latents[latents.isfinite().all(dim=1)]
        if self._storage is None:
            self._storage = torch.zeros(self.capacity, self.dim, device=latents.device, dtype=torch.float32)
        self._storage = self._storage.to(latents.device)
        kept = latents[-self.capacity :]
        positions = torch.arange(self._next, self._next + len(kept), device=latents.device) % self.capacity
        held = self._storage[positions % max(1, self._size)]
        self._storage[positions] = torch.where(kept.isfinite().all(dim=1, keepdim=True), kept, held)
        self._next = (self._next + len(kept)) % self.capacity
        self._size = min(self._size + len(kept), self.capacity)
        self.pushed += len(latents)

    def latents(self) -> Tensor:
        """A copy of the content, [len(self), d], the oldest first."""
        if self._storage is None:
            return torch.zeros(0, self.dim, device="cpu", dtype=torch.float32)
        if self._size < self.capacity:
            return self._storage[: self._size].clone()
        return self._storage.roll(-self._next, dims=0)

    def unordered(self) -> Tensor:
        """The content, [len(self), d], in no particular order: a view, which the next push changes."""
        return self.latents() if self._storage is None else self._storage[: self._size]

    @kept_for_training()
    def draw(self, count: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Different latents drawn at random, [count, d]: one from each of `count` equal parts of the queue, by age.

        The queue moves to the device, which is also the generator's. The cost depends only on the count.
        """
        if not 1 <= count <= self._size:
            raise ValueError(f"cannot draw {count} of {self._size} latents; push more first")
        self._storage = self._storage.to(device)
        ends = torch.arange(count + 1, device=device) * self._size // count
        part = torch.rand(count, device=device, dtype=torch.float32, generator=generator)
        oldest = self._next if self._size == self.capacity else 0
        return self._storage[(oldest + ends[:-1] + (part * ends.diff()).long()) % self.capacity]

    def resize(self, capacity: int) -> None:
        """Change the capacity; when it shrinks, the newest latents stay."""
        self._refill(self.latents(), capacity, self.pushed)

    def state_dict(self) -> dict:
        return {"latents": self.latents(), "pushed": self.pushed}

    def load_state_dict(self, state: dict) -> None:
        """Take over saved content; a ValueError if it has another dimension, or more latents than the capacity."""
        latents = state["latents"]
        if latents.ndim != 2 or latents.shape[1] != self.dim or len(latents) > self.capacity:
            raise ValueError(
                f"the saved queue has shape {tuple(latents.shape)}, this one holds at most {self.capacity} latents of "
                f"dimension {self.dim}; resume with the codebook_size, latent_dim and queue_per_code of the saved run"
            )
        self._refill(latents, self.capacity, state["pushed"])

    def _refill(self, latents: Tensor, capacity: int, pushed: int) -> None:
        self._clear()
        self.capacity = capacity
        if len(latents):
            self.push(latents)
        self.pushed = pushed
