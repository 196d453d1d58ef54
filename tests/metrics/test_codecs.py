"""Familiar codecs."""

import io

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from speech import RATE, speech

from tiny import tiny_codec, tiny_vae
from vpvae_hf.metrics.codecs import CodecUnavailableError, Opus, WebP, nearest_in_size
from vpvae_hf.modalities import MODALITIES


def picture(channels):
    """A smooth one [C, 24, 40]."""
    coarse = torch.rand(1, channels, 3, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(24, 40), mode="bilinear")[0]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_webp_is_that_of_pillow(channels, mode):
    signal, codec = picture(channels), WebP()
    file = codec.encode(signal, 30)
    pixels = ((signal.movedim(0, -1) + 1) * 127.5).round().to(torch.uint8).squeeze(-1).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "webp", quality=30, method=6)
    assert file == buffer.getvalue()
    decoded = codec.decode(file, signal)
    assert decoded.shape == signal.shape
    values = np.asarray(Image.open(buffer).convert(mode)).reshape(24, 40, channels)
    torch.testing.assert_close(decoded, torch.from_numpy(values / 127.5 - 1).movedim(-1, 0).float())
    assert codec.extent(signal) == 24 * 40


def test_opus_is_that_of_libsndfile():
    signal, codec = speech(0.7)[None], Opus(RATE)
    file = codec.encode(2 * signal, 90)
    samples, rate = soundfile.read(io.BytesIO(file), dtype="float32")
    decoded = codec.decode(file, signal)
    assert rate == RATE
    assert decoded.shape == signal.shape
    np.testing.assert_array_equal(decoded[0].numpy(), samples[: len(decoded[0])])
    longer = codec.decode(file, torch.zeros(1, len(samples) + 5))
    assert longer[0, -5:].tolist() == [0] * 5
    assert codec.extent(signal) == pytest.approx(700)


@pytest.mark.parametrize(
    ("codec", "signal"), [(WebP(), picture(3)), (Opus(RATE), speech(0.1)[None])], ids=["WebP", "Opus"]
)
def test_files_grow_along_the_ladder_and_the_nearest_is_found(codec, signal):
    sizes = {setting: len(codec.encode(signal, setting)) for setting in range(101)}
    ladder = [sizes[setting] for setting in codec.ladder]
    assert ladder == sorted(ladder)
    assert ladder[0] < ladder[-1]
    for wanted in (0, sum(ladder) // len(ladder), 10**6):
        setting, file = nearest_in_size(codec, signal, wanted)
        assert len(file) == sizes[setting]
        assert abs(len(file) - wanted) == min(abs(size - wanted) for size in sizes.values())


def test_modalities_have_codecs_as_far_as_these_can_be_written():
    assert isinstance(MODALITIES["image"].codec(tiny_vae()), WebP)
    assert isinstance(MODALITIES["audio"].codec(tiny_codec()), Opus)
    with pytest.raises(CodecUnavailableError, match=r"libsndfile .* cannot write Opus at 44100 Hz; Opus has 8, 12"):
        Opus(44_100)
