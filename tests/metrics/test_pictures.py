import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from speech import RATE, noisy, speech

from vpvae_hf.metrics import image_grid, spectrogram_grid
from vpvae_hf.metrics.pictures import _coloured, code_colours

# Of half a second: 32 frames of two pixels; a waveform above 80 bands of two pixels.
WIDTH, WAVE, HEIGHT, GAP = 64, 48, 208, 8


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.stack([speech(1.0, pitch=pitch)[4000:12_000] for pitch in (100, 150)])[:, None]


def panel(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    """[208, 64, 3]."""
    top, left = row * (HEIGHT + GAP), column * (WIDTH + GAP)
    return picture[top : top + HEIGHT, left : left + WIDTH]


def lightness(picture: np.ndarray) -> np.ndarray:
    """CIELAB's, 0 to 100, of the spectrogram."""
    return rgb2lab(picture[WAVE:])[..., 0]


def test_grey_and_transparent_images_are_shown_as_rgb():
    values = torch.tensor([-1.0, 1.0, 0.2, 1.0])  # RGBA; the last is opaque
    (grey,), (whole,), (clear,) = (
        image_grid([image[None, :, None, None]])[0]
        for image in (values[2:3], values, torch.cat([values[:3], torch.tensor([-1.0])]))
    )
    assert (grey.tolist(), whole.tolist(), clear.tolist()) == ([153] * 3, [0, 255, 153], [255] * 3)


def test_rows_of_clips_with_white_gaps(clips):
    clips = clips[..., :-1]
    picture = spectrogram_grid([clips, clips / 2, clips.flip(0)], RATE)
    assert picture.shape == (3 * HEIGHT + 2 * GAP, 2 * WIDTH + GAP, 3)
    assert picture.dtype == np.uint8
    for start in (HEIGHT, 2 * HEIGHT + GAP):
        assert (picture[start : start + GAP] == 255).all()
    assert (picture[:, WIDTH : WIDTH + GAP] == 255).all()
    assert not (panel(picture, 0, 0) == 255).all(axis=-1).any()
    assert np.array_equal(panel(spectrogram_grid([clips[1:]], RATE), 0, 0), panel(picture, 0, 1))


def test_half_of_the_amplitude_is_darker_and_half_as_high(clips):
    picture = spectrogram_grid([clips, clips / 2], RATE)
    loud, quiet = panel(picture, 0, 0), panel(picture, 1, 0)
    assert lightness(loud).max() > 95
    assert lightness(quiet).max() < lightness(loud).max() - 3
    drawn = [(each[:WAVE] != 240).any(axis=(1, 2)).sum() for each in (loud, quiet)]
    assert drawn[0] >= WAVE - 8
    assert drawn[1] == pytest.approx(drawn[0] / 2, abs=2)


def test_a_tone_is_a_bright_line_where_its_frequency_is():
    time = torch.arange(8000) / RATE
    tones = torch.stack([torch.sin(2 * torch.pi * frequency * time) for frequency in (500, 5000)])[:, None]
    picture = spectrogram_grid([tones], RATE)
    low, high = (lightness(panel(picture, 0, column))[:, WIDTH // 2].argmax() for column in range(2))
    # On Slaney's scale 45.2 mel are 8 kHz, 7.5 are 500 Hz and 38.4 are 5 kHz.
    assert low == pytest.approx(160 * (1 - 7.5 / 45.2), abs=3)
    assert high == pytest.approx(160 * (1 - 38.4 / 45.2), abs=3)


def test_lost_and_added_detail_shows(clips):
    picture = spectrogram_grid([clips, noisy(clips, 0.01)], RATE)
    assert lightness(panel(picture, 1, 0)).mean() > lightness(panel(picture, 0, 0)).mean() + 5


def test_silence_is_dark(clips):
    silence = torch.zeros(1, 1, 8000)
    picture = spectrogram_grid([silence, clips[:1], silence], RATE)
    assert lightness(panel(picture, 0, 0)).max() < 3
    assert np.array_equal(panel(picture, 0, 0), panel(picture, 2, 0))
    assert lightness(panel(picture, 1, 0)).max() > 95


def test_a_clip_shorter_than_a_pixel():
    assert spectrogram_grid([torch.ones(1, 1, 3)], RATE).shape == (HEIGHT, 2, 3)


def test_equal_steps_look_equal():
    """Along the colours lightness rises evenly, so that they also serve in grey."""
    sweep = np.linspace(0, 1, 81)[:, None]
    steps = np.diff(rgb2lab(_coloured(sweep)[::2, 0])[..., 0])
    assert (steps > 0).all()
    assert steps[10:].std() < 0.25 * steps[10:].mean()


def test_like_codes_have_like_colours():
    """Also with fewer dimensions than colours, and with more codes than torch ranks at once."""
    ramp = torch.linspace(-3, 5, 2500 * 2500).view(1, 2500, 2500, 1)
    colours = code_colours(torch.cat([ramp, -ramp, torch.zeros_like(ramp)], dim=-1))
    assert colours.shape == (1, 2500, 2500, 3)
    assert (colours[..., 0].flatten().diff() >= 0).all()
    np.testing.assert_allclose(colours[0, 1250, 0], [0.5, 0.5, 0], atol=1e-2)
    assert torch.equal(code_colours(ramp[:, :9])[..., 1:], torch.zeros(1, 9, 2500, 2))
