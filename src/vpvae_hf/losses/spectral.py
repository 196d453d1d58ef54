"""Multi-resolution STFT loss between waveforms: Yamamoto et al. 2020, arXiv 1910.11480, section 2.2.

B items of C channels, W = B * C waveforms of T samples; a spectrogram of one has F frequencies and L frames, N = F * L
bins.
"""

import torch
from torch import Tensor

# (FFT size, hop, window length) in samples, the paper's table 1; they do not scale with the sampling rate.
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
# Reflection pads half of the largest FFT on both sides; it can reflect only fewer samples than there are.
MINIMUM_LENGTH = 1 + max(fft_size for fft_size, _, _ in RESOLUTIONS) // 2
# Added to the power of each bin. Its root, 3e-4, is just above the magnitude of the noise that rounding to 16 bits
# makes (1e-4 to 2e-4), so anything quieter counts as silence, with a finite logarithm and slope.
SILENT_POWER = 1e-7
# Eq. (4) divides by the loudness of a waveform. If the root mean square of its bins is less than this, this is taken in
# its place; white noise at -65 dB of full scale has about as much. Otherwise one silent segment would dominate its
# batch's gradient.
QUIETEST_MAGNITUDE = 1e-2


def multi_resolution_stft_loss(reconstruction: Tensor, original: Tensor) -> Tensor:
    """[] float32: spectral convergence plus L1 of log magnitudes, mean over three resolutions: eqs. (3) to (6).

    It is 0 if both waveforms are equal, and does not notice a change of sign. For very quiet or silent waveforms it
    departs from the paper (`SILENT_POWER`, `QUIETEST_MAGNITUDE`), so that it and its gradient are finite; if the
    reconstruction is all zeros, the gradient is zero. It is computed in float32 under autocast, too: half precision has
    no Fourier transform.

    Args:
        reconstruction, original: [B, C, T] in [-1, 1], T at least 1025 samples. Each channel is a waveform of its own.
    """
    check_waveforms("the STFT loss", reconstruction, original)
    length = original.shape[-1]
    if length < MINIMUM_LENGTH:
        raise ValueError(
            f"the STFT loss needs at least {MINIMUM_LENGTH} samples, got {length}: use longer segments, or do without "
            "the STFT loss"
        )
    # Autocast lowers the precision of nothing below.
    x, x_hat = original.float().flatten(0, 1), reconstruction.float().flatten(0, 1)
    return torch.stack([_stft_loss(x, x_hat, *each) for each in RESOLUTIONS]).mean()


def multi_resolution_stft_by_position(reconstruction: Tensor, original: Tensor) -> Tensor:
    """[B, T] float32: what samples contribute to their item's `multi_resolution_stft_loss`, the mean of these.

    A frame's contribution is divided among the samples that are nearest to its middle. Args and errors as for the loss.
    """
    check_waveforms("the STFT loss", reconstruction, original)
    channels, length = original.shape[1:]
    x, x_hat = original.float().flatten(0, 1), reconstruction.float().flatten(0, 1)
    parts = [_by_sample(_frame_losses(x, x_hat, *each), each[1], length) for each in RESOLUTIONS]
    return torch.stack(parts).mean(dim=0).unflatten(0, (-1, channels)).mean(dim=1)


def check_waveforms(loss: str, reconstruction: Tensor, original: Tensor) -> None:
    """Raise a ValueError that names the loss unless both are waveforms of one shape [B, C, T]."""
    shapes = [list(reconstruction.shape), list(original.shape)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{loss} compares waveforms of one shape, got {shapes[0]} and {shapes[1]}: crop or pad one")
    if len(shapes[0]) != 3:
        raise ValueError(f"{loss} needs waveforms [B, C, T], got {shapes[0]}: reshape mono waveforms to [B, 1, T]")


def _stft_loss(x: Tensor, x_hat: Tensor, fft_size: int, hop: int, window_length: int) -> Tensor:
    """Eq. (3): the mean over waveforms of eqs. (4) and (5). x, x_hat: [W, T] -> []."""
    window = torch.hann_window(window_length, dtype=torch.float32, device=x.device)
    s, s_hat = (_magnitudes(each, fft_size, hop, window) for each in (x, x_hat))
    loudness = torch.linalg.matrix_norm(s).clamp(min=QUIETEST_MAGNITUDE * s[0].numel() ** 0.5)
    spectral_convergence = torch.linalg.matrix_norm(s - s_hat) / loudness
    log_magnitude = (s.log() - s_hat.log()).abs().mean(dim=(1, 2))
    return (spectral_convergence + log_magnitude).mean()


def _frame_losses(x: Tensor, x_hat: Tensor, fft_size: int, hop: int, window_length: int) -> Tensor:
    """What each frame contributes to eqs. (4) and (5) of its waveform, [W, L]; the sum over frames is their value."""
    window = torch.hann_window(window_length, dtype=torch.float32, device=x.device)
    s, s_hat = (
        _magnitudes(_reflected(each, fft_size // 2), fft_size, hop, window, center=False) for each in (x, x_hat)
    )
    loudness = torch.linalg.matrix_norm(s).clamp(min=QUIETEST_MAGNITUDE * s[0].numel() ** 0.5)
    energy = (s - s_hat).square().sum(dim=1)
    distance = energy.sum(dim=1).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    log_magnitude = (s.log() - s_hat.log()).abs().mean(dim=1)
    return energy / (distance * loudness)[:, None] + log_magnitude / s.shape[-1]


def _by_sample(parts: Tensor, hop: int, length: int) -> Tensor:
    """[W, T] from contributions of frames [W, L]; the mean over samples is the sum over frames."""
    frame = ((torch.arange(length, device=parts.device) + hop // 2) // hop).clamp(max=parts.shape[1] - 1)
    return (length * parts / frame.bincount(minlength=parts.shape[1]).clamp(min=1))[:, frame]


def _reflected(waveforms: Tensor, count: int) -> Tensor:
    """[W, T + 2 count], as torch.stft pads them, but with a gradient that is deterministic on a GPU, too."""
    before, after = waveforms[:, 1 : count + 1].flip(1), waveforms[:, -count - 1 : -1].flip(1)
    return torch.cat([before, waveforms, after], dim=1)


def _magnitudes(waveforms: Tensor, fft_size: int, hop: int, window: Tensor, center: bool = True) -> Tensor:
    """[W, T] -> [W, F, L]."""
    spectrum = torch.stft(waveforms, fft_size, hop, len(window), window, center=center, return_complex=True)
    return (torch.view_as_real(spectrum).square().sum(dim=-1) + SILENT_POWER).sqrt()
