"""Synthetic sounds that speech metrics treat as speech, for trials without recordings."""

import math

import torch
from torch import Tensor

# In Hz.
_FORMANTS = (500, 1500, 2500)
_FORMANT_WIDTH = 250
_HARMONICS = 39


def synthetic_voice(seconds: float, *, pitch: float = 120, seed: int = 0, sampling_rate: int = 16_000) -> Tensor:
    """[T] in [-0.3, 0.3]: harmonics of a wavering pitch, under formants that move, in syllables with pauses between.

    Args:
        pitch: mean pitch in Hz.
        seed: seed of the formants' movement and of faint noise.
    """
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * sampling_rate)) / sampling_rate
    wander = torch.randn(4, generator=generator)
    phase = 2 * math.pi * (pitch * time + 2 * torch.sin(2 * math.pi * 3 * time + wander[0]))
    formants = [
        centre * (1 + 0.2 * torch.sin(2 * math.pi * rate * time + start))
        for centre, rate, start in zip(_FORMANTS, (1.3, 1.7, 2.3), wander[1:].tolist(), strict=True)
    ]
    wave = torch.zeros_like(time)
    for harmonic in range(1, 1 + _HARMONICS):
        strength = sum(torch.exp(-(((harmonic * pitch - formant) / _FORMANT_WIDTH) ** 2)) for formant in formants)
        wave += (0.05 + strength) / harmonic**0.5 * torch.sin(harmonic * phase)
    syllables = torch.sin(2 * math.pi * 2 * time).clamp_min(0) ** 0.5
    wave = wave * syllables + 1e-4 * torch.randn(len(time), generator=generator)
    return 0.3 * wave / wave.abs().max()
