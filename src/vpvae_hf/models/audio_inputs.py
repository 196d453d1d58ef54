"""What audio and padding masks must be like.

Shapes: B samples of a batch, T audio samples.
"""

import torch
from torch import Tensor


def checked_audio(audio: Tensor, shortest: int) -> Tensor:
    """The audio, if it is [B, 1, T], floating, finite, and T at least `shortest`.

    Raises:
        TypeError, ValueError: it is not.
    """
    if audio.ndim != 3 or audio.shape[1] != 1:
        remedy = "average the channels" if audio.ndim == 3 else "add dimensions with reshape(B, 1, T)"
        raise ValueError(f"audio must be mono, [B, 1, T], got shape {tuple(audio.shape)}; {remedy}")
    if not audio.is_floating_point():
        raise TypeError(f"audio must be floating point in [-1, 1], got {audio.dtype}; use the feature extractor")
    if len(audio) == 0:
        raise ValueError(f"audio must be a batch of at least one sample, got shape {tuple(audio.shape)}")
    if audio.shape[-1] < shortest:
        raise ValueError(
            f"audio must have at least {shortest} samples, which one code stands for, got shape {tuple(audio.shape)}; "
            "append zeros"
        )
    if not torch.isfinite(audio).all():
        bad = int((~torch.isfinite(audio)).sum())
        raise ValueError(f"{bad} of {audio.numel()} audio samples are NaN or infinite; audio lies in [-1, 1]")
    return audio


def checked_padding(mask: Tensor, batch: int, shortest: int, length: int | None = None) -> Tensor:
    """Samples of audio in each sample of a batch, [B] int64, from a mask [B, T] (or [B, 1, T]) of ones, then zeros.

    Args:
        length: T; any where None.

    Raises:
        ValueError: another shape, padding before audio, or less audio than `shortest`.
    """
    mask = mask[:, 0] if mask.ndim == 3 and mask.shape[1] == 1 else mask
    if mask.ndim != 2 or len(mask) != batch or length not in (None, mask.shape[-1]):
        wanted = f"[{batch}, {'T' if length is None else length}]"
        raise ValueError(f"padding_mask must be {wanted}, 1 for audio and 0 for padding, got {tuple(mask.shape)}")
    mask = mask.bool()
    lengths = mask.sum(dim=1)
    if not torch.equal(mask, torch.arange(mask.shape[-1], device=mask.device) < lengths[:, None]):
        raise ValueError("padding_mask must be ones followed by zeros; pad at the end of each sample, not before it")
    if bool((lengths < shortest).any()):
        raise ValueError(
            f"each sample must have at least {shortest} audio samples, which one code stands for, got "
            f"{int(lengths.min())}; leave it out, or count some of the padding as audio"
        )
    return lengths
