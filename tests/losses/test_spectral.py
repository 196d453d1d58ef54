import numpy as np
import pytest
import scipy
import torch

from vpvae_hf.losses import multi_resolution_stft_loss
from vpvae_hf.losses.spectral import MINIMUM_LENGTH, QUIETEST_MAGNITUDE, SILENT_POWER

# FFT size, hop and window of the paper's table 1.
PAPER = [(1024, 120, 600), (2048, 240, 1200), (512, 50, 240)]


def tone(length: int, pitch: float, generator: torch.Generator) -> torch.Tensor:
    """Ten harmonics of `pitch` Hz at 16 kHz that swell and fade, in a little noise: [length] float32."""
    seconds = torch.arange(length) / 16000
    orders = torch.arange(1, 11)[:, None]
    phases = 2 * torch.pi * torch.rand(10, 1, generator=generator)
    harmonics = (torch.sin(2 * torch.pi * pitch * orders * seconds + phases) / orders).sum(dim=0)
    return 0.2 * harmonics * torch.sin(torch.pi * torch.linspace(0, 1, length)) + 0.001 * torch.randn(
        length, generator=generator
    )


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def original(generator) -> torch.Tensor:
    return torch.stack([tone(4000, pitch, generator) for pitch in (110.0, 230.0, 307.0)])[:, None]


@pytest.fixture
def noise(original, generator) -> torch.Tensor:
    return torch.randn(original.shape, generator=generator)


def magnitudes(waveform: np.ndarray, fft_size: int, hop: int, window_length: int) -> np.ndarray:
    """[T] -> [F, L]: scipy's transform, of a reflected waveform and with the window in the middle of the FFT."""
    window = np.zeros(fft_size)
    start = (fft_size - window_length) // 2
    window[start : start + window_length] = scipy.signal.get_window("hann", window_length)
    padded = np.pad(waveform, fft_size // 2, mode="reflect")
    _, _, spectrum = scipy.signal.stft(
        padded, window=window, nperseg=fft_size, noverlap=fft_size - hop, boundary=None, padded=False
    )
    # scipy divides by the window's sum.
    return np.abs(spectrum) * window.sum()


def expected_loss(made: torch.Tensor, original: torch.Tensor) -> float:
    """Eqs. (3) to (6) in float64, without any floor."""
    values = []
    for x_hat, x in zip(made.double().flatten(0, 1).numpy(), original.double().flatten(0, 1).numpy(), strict=True):
        for resolution in PAPER:
            s, s_hat = magnitudes(x, *resolution), magnitudes(x_hat, *resolution)
            convergence = np.linalg.norm(s - s_hat) / np.linalg.norm(s)
            values.append(convergence + np.abs(np.log(s) - np.log(s_hat)).mean())
    return float(np.mean(values))


def gradient(made: torch.Tensor, original: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    made = made.clone().requires_grad_()
    loss = multi_resolution_stft_loss(made, original)
    return loss.detach(), *torch.autograd.grad(loss, made)


@pytest.mark.parametrize("scale", [0.03, 0.3])
def test_loss_is_the_papers(original, noise, scale):
    # Noise in both keeps all bins far above the floor.
    clear = original + 0.05 * noise.flip(-1)
    made = clear + scale * noise
    loss = multi_resolution_stft_loss(made, clear)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(expected_loss(made, clear), rel=1e-3)


def test_sign_is_not_heard(original):
    assert float(multi_resolution_stft_loss(-original, original)) == 0


def test_gradient_is_the_slope(original, noise):
    made = original + 0.1 * noise
    _, slopes = gradient(made, original)
    # Where a magnitude is almost zero, its logarithm bends sharply: only a short step follows the slope.
    length = 1e-4
    step = length * slopes / slopes.norm()
    rise = multi_resolution_stft_loss(made + step, original) - multi_resolution_stft_loss(made - step, original)
    assert float(rise) == pytest.approx(2 * length * float(slopes.norm()), rel=0.02)


def test_descent_brings_the_spectrum_nearer(original, generator):
    """Measured without the loss itself, from noise, and without the waveform becoming the original's."""
    made = (0.05 * torch.randn(1, 1, 4000, generator=generator)).requires_grad_()
    target = original[:1]

    def distance() -> float:
        pair = [magnitudes(each.detach().double().flatten().numpy(), 400, 100, 400) for each in (made, target)]
        return float(np.linalg.norm(pair[0] - pair[1]) / np.linalg.norm(pair[1]))

    before, optimizer = distance(), torch.optim.Adam([made], lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        multi_resolution_stft_loss(made, target).backward()
        optimizer.step()
    assert before > 0.9
    assert distance() < 0.5


@pytest.mark.parametrize("silent", ["original", "reconstruction", "both", "end of the original", "end of both"])
def test_silence_has_a_finite_loss_and_gradient(original, noise, silent):
    made, clear = original + 0.01 * noise, original.clone()
    for name, waveform in {"reconstruction": made, "original": clear}.items():
        if silent in (name, "both"):
            waveform.zero_()
    if silent.startswith("end"):
        clear[..., 2000:] = 0
    if silent == "end of both":
        made[..., 2000:] = 0
    loss, slopes = gradient(made, clear)
    assert loss.isfinite()
    assert slopes.isfinite().all()
    assert bool(slopes.any()) == (silent not in ("reconstruction", "both"))
    assert bool(loss) == (silent != "both")


def test_a_silent_original_by_hand(original, noise):
    made = 0.05 * noise
    floor = SILENT_POWER**0.5
    values = []
    for x_hat in made.double().flatten(0, 1).numpy():
        for resolution in PAPER:
            s_hat = np.sqrt(magnitudes(x_hat, *resolution) ** 2 + SILENT_POWER)
            convergence = np.linalg.norm(floor - s_hat) / (QUIETEST_MAGNITUDE * s_hat.size**0.5)
            values.append(convergence + np.abs(np.log(floor) - np.log(s_hat)).mean())
    loss = multi_resolution_stft_loss(made, torch.zeros_like(made))
    assert float(loss) == pytest.approx(np.mean(values), rel=1e-3)


def test_a_silent_original_does_not_drown_the_others(original, noise):
    made, clear = original + 0.01 * noise, original.clone()
    made[0] -= original[0]
    clear[0] = 0
    _, slopes = gradient(made, clear)
    norms = slopes.flatten(1).norm(dim=1)
    assert norms[0] < 50 * norms[1:].min()


def test_shortest_waveforms(original, noise):
    made, clear = (original + 0.1 * noise)[..., :1025], original[..., :1025]
    assert MINIMUM_LENGTH == 1025
    _, slopes = gradient(made, clear)
    assert slopes.isfinite().all()
