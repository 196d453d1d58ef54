"""How long a part of a model takes in its forward pass."""

import time

import torch
from torch import nn


class Stopwatch:
    """Adds up the time of a module's forward passes; on CUDA without waiting for them.

    Args:
        module: what is timed from now on.
        device: where it runs.
    """

    def __init__(self, module: nn.Module, device: torch.device):
        self._on_cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._begun: float | torch.cuda.Event | None = None
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def seconds(self) -> float:
        """Since the last time this was asked; waits for the device."""
        if self._events:
            torch.cuda.synchronize()
        measured = self._seconds + sum(begun.elapsed_time(ended) for begun, ended in self._events) / 1000
        self._seconds, self._events = 0.0, []
        return measured

    def _begin(self, *_) -> None:
        self._begun = self._event() if self._on_cuda else time.perf_counter()

    def _end(self, *_) -> None:
        # What a hook returns takes the place of the module's output.
        if self._on_cuda:
            self._events.append((self._begun, self._event()))
        else:
            self._seconds += time.perf_counter() - self._begun

    @staticmethod
    def _event() -> "torch.cuda.Event":
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
