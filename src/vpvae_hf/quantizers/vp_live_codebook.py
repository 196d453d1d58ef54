"""A codebook of the present latents. VP updates it in training, to measure its error and to draw latents to it."""

import math

import torch
from torch import Tensor

from vpvae_hf import distributed
from vpvae_hf.neighbors import NearestPoint, nearest_point
from vpvae_hf.tensors import kept_for_training

from .vp_queue import LatentQueue

# A Lloyd step on _DRAWN latents of the queue, every _EVERY training steps, costs about one percent of a small model's
# training and keeps up with the queue.
_EVERY, _DRAWN = 10, 8192
_FIRST_LLOYD_STEPS = 6
# A code is the mean of about this many latents that were last assigned to it. With n of them its error is larger by one
# part in n; if n is larger, the code lags behind the latents.
_LATENTS_PER_CODE = 32
# In a good codebook all codes contribute alike to the error. One that contributes less than this share of the mean is
# moved to a latent that is drawn in proportion to its squared error.
_LEAST_CONTRIBUTION = 0.2
# Squared distances are cut off here: if latents diverge, an infinite one would stay in the moving average for good.
_LARGEST = 1e30
# How much of the moving average of the error one step replaces: a batch shows the error within a few percent.
_GAIN = 0.05


class LiveCodebook:
    """K-means codebook of the latents in the queue, by Lloyd steps with moving averages; no gradient reaches it.

    In a distributed job every rank must call `update` and `observe`; then all have the same codebook and error.

    Attributes:
        codebook: [K, d] float32 on the latents' device; None before the first update.
        error_ms: [] mean square distance to their codes of latents that the codebook has not seen, a moving average
            over steps; NaN before the first.
    """

    def __init__(self, codebook_size: int):
        self.codebook_size = codebook_size
        self.codebook: Tensor | None = None
        self.error_ms = torch.tensor(math.nan, device="cpu", dtype=torch.float64)
        # [K, 2]: how many latents each code is the mean of, and the sum of their squared distances
        self._use: Tensor | None = None
        self._steps = 0
        self._search: NearestPoint | None = None

    @kept_for_training()
    def update(self, queue: LatentQueue, device: torch.device) -> None:
        """Call it in each training step once the queue holds two latents per code; it acts in one of ten steps."""
        generator = torch.Generator(device).manual_seed(queue.pushed)
        if first := self.codebook is None:
            self.codebook = queue.draw(self.codebook_size, device, generator)
            self._use = torch.zeros(self.codebook_size, 2, device=device, dtype=torch.float32)
        # A checkpoint's tensors are read into main memory.
        self.codebook, self._use = self.codebook.to(device), self._use.to(device)
        self._steps += 1
        if self._steps % _EVERY != 1:
            return
        if distributed.rank() == 0:
            for _ in range(_FIRST_LLOYD_STEPS if first else 1):
                self._lloyd_step(queue, generator)
        # Sums on a GPU are rounded differently each time, so the other ranks do not repeat them but take the first
        # rank's.
        both = distributed.from_first_rank(torch.cat([self.codebook, self._use], dim=1), same_shape=True)
        self.codebook, self._use = both.tensor_split([both.shape[1] - 2], dim=1)
        self._search = None

    def _lloyd_step(self, queue: LatentQueue, generator: torch.Generator) -> None:
        count = min(_DRAWN, len(queue))
        latents = queue.draw(count, self.codebook.device, generator)
        distances, codes = nearest_point(latents, self.codebook)
        squares = distances.square().clamp(max=_LARGEST)
        keep = math.exp(-count / (_LATENTS_PER_CODE * self.codebook_size))
        use = (keep * self._use).index_add(0, codes, torch.stack([torch.ones_like(squares), squares], dim=1))
        means = (keep * self._use[:, :1] * self.codebook).index_add(0, codes, latents) / use[:, :1].clamp_min(1e-6)
        contribution = use[:, 1].mean()
        idle = (use[:, 1] < _LEAST_CONTRIBUTION * contribution)[:, None]
        # If all were zero, nothing could be drawn in proportion.
        drawn = (squares + 1e-20).multinomial(self.codebook_size, replacement=True, generator=generator)
        self.codebook = torch.where(idle, latents[drawn], means)
        # A code that was moved counts as one latent, so that it goes to the middle of its new cell at once.
        self._use = torch.where(idle, torch.stack([torch.ones_like(contribution), contribution]), use)

    def nearest(self, latents: Tensor) -> Tensor:
        """The nearest code of each latent, [N, d]."""
        if latents.device.type == "cpu":
            self._search = self._search or NearestPoint(self.codebook)
            return self.codebook[self._search(latents)[1]]
        return self.codebook[nearest_point(latents, self.codebook)[1]]

    @kept_for_training()
    def observe(self, error_ms: Tensor) -> None:
        """Record the mean square error [], float64, of all ranks' latents in a step."""
        known = self.error_ms.to(error_ms)
        self.error_ms = torch.where(known.isnan(), error_ms, torch.lerp(known, error_ms, _GAIN))

    def state_dict(self) -> dict:
        return {"codebook": self.codebook, "use": self._use, "steps": self._steps, "error_ms": float(self.error_ms)}

    def load_state_dict(self, state: dict) -> None:
        self.codebook, self._use, self._steps = state["codebook"], state["use"], state["steps"]
        self.error_ms = torch.full_like(self.error_ms, state["error_ms"])
        self._search = None
