import pytest
import torch
from skimage import data
from speech import noisy, speech


@pytest.fixture(scope="session")
def photograph() -> torch.Tensor:
    """[3, 512, 512] in [-1, 1]."""
    return torch.from_numpy(data.astronaut().copy()).movedim(-1, 0).float() / 127.5 - 1


@pytest.fixture(scope="session")
def clips() -> tuple[torch.Tensor, torch.Tensor]:
    """Three signals of 1.5 seconds with more and more noise, and without."""
    original = torch.stack([speech(1.5, pitch=pitch, seed=seed) for seed, pitch in enumerate((100, 140, 200))])[:, None]
    return torch.cat([noisy(clip[None], 0.002 * 4**i) for i, clip in enumerate(original)]), original
