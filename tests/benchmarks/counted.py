"""Prints as JSON what `benchmarks/counts/device.py` counts of known operations. A process of its own: torch must not
have been imported before it."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks/counts"))

import device
import torch
from torch import nn

from vpvae_hf.neighbors import nearest_point


def backward(x):
    layer(x).square().mean().backward()


device.enter()
layer = device.onto(nn.Linear(3, 2))
vectors, host = torch.randn(6, 3).to(device.DEVICE), torch.randn(6, 3)
mask, integers = vectors > 0, torch.arange(6).to(device.DEVICE)
OPERATIONS = {
    "item": lambda: vectors.sum().item(),
    "bool": lambda: bool(mask.any()),
    "tolist": lambda: vectors.tolist(),
    "equal": lambda: torch.equal(vectors, vectors),
    "nonzero": lambda: mask.nonzero(),
    "mask": lambda: vectors[mask],
    "mask, assigned": lambda: vectors.clone().__setitem__(mask, vectors[:1].expand(6, 3)[mask]),
    "mask, filled": lambda: vectors.clone().__setitem__(mask, 0.0),
    "places": lambda: vectors[integers],
    "list of places": lambda: vectors[[0, 1]],
    "unique": lambda: torch.unique(integers),
    "bincount": lambda: torch.bincount(integers, minlength=6),
    "new tensor": lambda: vectors.new_tensor(1.0),
    "full": lambda: torch.full((), 1.0, device=device.DEVICE),
    "to the host": lambda: vectors.cpu(),
    "to the host, not waited for": lambda: vectors.to("cpu", non_blocking=True),
    "to the device": lambda: host.to(device.DEVICE),
    "to the device, not waited for": lambda: host.pin_memory().to(device.DEVICE, non_blocking=True),
    "clamp and sort": lambda: vectors.clamp(min=0).sort(dim=0),
    "views": lambda: vectors.T[1:].unsqueeze(0),
    "nearest": lambda: nearest_point(vectors, vectors),
    "backward": lambda: backward(vectors),
}
found = {}
for name, operation in OPERATIONS.items():
    with device.counter.counted() as events:
        operation()
    found[name] = device.summary(events)
print(json.dumps(found), flush=True)
# Python's normal exit would abort if autograd's thread were still releasing the mode, which takes Python.
os._exit(0)
