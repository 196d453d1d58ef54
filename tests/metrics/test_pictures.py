import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from speech import RATE, noisy, speech

from vpvae_hf.metrics import image_grid, spectrogram_grid
from vpvae_hf.metrics.pictures import _coloured, code_colours

# Of half a second: 32 frames of two pixels; a waveform above 80 bands of two pixels; axes to the left and below.
WIDTH, WAVE, HEIGHT, GAP, LEFT, BELOW = 64, 48, 208, 8, 40, 24


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.stack([speech(1.0, pitch=pitch)[4000:12_000] for pitch in (100, 150)])[:, None]


def panel(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    """[208, 64, 3]."""
    top, left = row * (HEIGHT + GAP), LEFT + column * (WIDTH + GAP)
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
    assert picture.shape == (3 * HEIGHT + 2 * GAP + BELOW, LEFT + 2 * WIDTH + GAP, 3)
    assert picture.dtype == np.uint8
    for start in (HEIGHT, 2 * HEIGHT + GAP):
        assert (picture[start : start + GAP, LEFT:] == 255).all()
    assert (picture[:-BELOW, LEFT + WIDTH : LEFT + WIDTH + GAP] == 255).all()
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
    assert spectrogram_grid([torch.ones(1, 1, 3)], RATE).shape == (HEIGHT + BELOW, LEFT + 2, 3)


def test_a_tone_is_at_the_mark_of_its_frequency():
    """In the axis marks are rows whose last pixels are dark: 8, 4, 2, 1 and 0.5 kHz, from the top."""
    time = torch.arange(8000) / RATE
    picture = spectrogram_grid([torch.sin(2 * torch.pi * 2000 * time)[None, None]], RATE)
    marks = [row for row in range(WAVE, HEIGHT) if (picture[row, LEFT - 5 : LEFT] < 100).all()]
    assert len(marks) == 5
    assert lightness(panel(picture, 0, 0))[:, WIDTH // 2].argmax() + WAVE == pytest.approx(marks[2], abs=3)


def test_a_mark_of_time_is_below_what_happens_then():
    click = torch.zeros(1, 1, 24_000)
    click[..., 16_000] = 1
    picture = spectrogram_grid([click], RATE)
    marks = [column for column in range(LEFT, picture.shape[1]) if (picture[HEIGHT : HEIGHT + 5, column] < 100).all()]
    assert [mark - LEFT for mark in marks] == [0, 62, 125]  # of 0, 0.5 and 1 s; 8 ms per pixel
    brightest = picture[WAVE:HEIGHT, LEFT:].astype(int).sum(axis=(0, 2)).argmax()
    assert brightest == pytest.approx(125, abs=2)


def ink(picture: np.ndarray) -> int:
    return int((picture < 128).all(axis=-1).sum())


@pytest.mark.parametrize("shown_side", [1, 100])
def test_labels_and_captions_lie_beside_and_below_images(shown_side):
    images = torch.rand(3, 3, 40, 30, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = image_grid([images, images], shown_side=shown_side)
    texts = {"labels": ["original", "8 codes"], "captions": [[], ["31 dB", "9 dB", "7 dB"]]}
    written = image_grid([images, images], **texts, shown_side=shown_side)
    factor = 1 if shown_side == 1 else 3  # the first at which the longer side has 100 pixels
    height, width, gap = 40 * factor, 30 * factor, 4
    assert plain.shape == (2 * height + gap, 3 * width + 2 * gap, 3)
    pixels = ((images[1] + 1) * 127.5).round().byte().movedim(0, -1).numpy()
    enlarged = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    np.testing.assert_array_equal(plain[:height, width + gap : 2 * width + gap], enlarged)
    places = range(written.shape[1] - width)
    (left,) = (each for each in places if np.array_equal(written[:height, each : each + width], enlarged))
    for top in (0, height + gap):
        np.testing.assert_array_equal(written[top : top + height, left : left + width], enlarged)
        assert ink(written[top : top + height, :50]) > 20  # there is no image yet
    assert ink(written[2 * height + gap :, left : left + width]) > 20
    assert ink(written[2 * height + gap :, :50]) == 0


def test_more_letters_take_more_space():
    images = torch.zeros(1, 3, 40, 30)
    short, long, two_lines = (
        image_grid([images], captions=[[text]]).shape for text in ("1", "a caption that is wide", "1\n2")
    )
    assert long[1] > short[1] == 30
    assert two_lines[0] > short[0] == long[0] > 40


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
