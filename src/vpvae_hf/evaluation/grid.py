"""Images side by side."""

import numpy as np
import torch
from torch import Tensor

_GAP = 4


def image_grid(rows: list[Tensor]) -> np.ndarray:
    """One picture of several rows of images, with white gaps.

    Args:
        rows: each [B, C, H, W] in [-1, 1], of one shape.

    Returns:
        [height, width, 3] uint8.
    """
    images = torch.stack([row.detach().float().cpu() for row in rows])
    count, across, channels, height, width = images.shape
    grid = np.full((count * (height + _GAP) - _GAP, across * (width + _GAP) - _GAP, channels), 255, dtype=np.uint8)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(2, -1).numpy()
    for i in range(count):
        for j in range(across):
            top, left = i * (height + _GAP), j * (width + _GAP)
            grid[top : top + height, left : left + width] = pixels[i, j]
    return grid if channels == 3 else grid[..., :1].repeat(3, axis=-1)
