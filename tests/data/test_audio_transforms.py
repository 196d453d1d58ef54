"""Audio files to waveforms: every format, parts, resampling, segments, clips, and the messages for unusable files."""

import contextlib
import itertools
import re
import sys
from collections import Counter

import fsspec
import numpy as np
import pytest
import soundfile
import torch
from audio_files import (
    CORRUPT,
    RATE,
    clip,
    encoded,
    loader_of,
    numbers_of,
    sine,
    starts_of,
    write_counted,
    write_shards,
)

from vpvae_hf.data import AudioClip, AudioSegment, MaskedAudioSegment, UnreadableFileError, read_audio
from vpvae_hf.data.audio import AudioFile

LOSSLESS = [("WAV", "PCM_24"), ("FLAC", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "DOUBLE")]
LOSSY = [
    pytest.param(name, marks=pytest.mark.skipif(name not in soundfile.available_formats(), reason="libsndfile"))
    for name in ("OGG", "MP3")
]


def in_memory(content: bytes | None) -> dict:
    return {"bytes": content, "path": "talk.wav"}


def read_part(content: bytes, start: int = 0, stop: int | None = None, sampling_rate: int = RATE) -> np.ndarray:
    with AudioFile(in_memory(content), sampling_rate=sampling_rate, resample=True) as audio:
        return audio.read(start, audio.length if stop is None else stop)


@pytest.mark.parametrize(("file_format", "subtype"), LOSSLESS)
def test_lossless_files_are_read_exactly(tmp_path, file_format, subtype):
    content = encoded(clip(3, 1000), RATE, file_format, subtype)
    path = tmp_path / "talk"
    path.write_bytes(content)
    for file in (path, str(path), f"file://{path}", in_memory(content), {"bytes": None, "path": str(path)}):
        audio = read_audio(file, sampling_rate=RATE)
        assert audio.dtype == np.float32
        np.testing.assert_array_equal(audio, clip(3, 1000))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_32"])
def test_whole_numbers_are_scaled_to_one(subtype):
    audio = read_audio(in_memory(encoded(sine(100, RATE, 500), RATE, "WAV", subtype)), sampling_rate=RATE)
    np.testing.assert_allclose(audio, sine(100, RATE, 500), atol=1 / 127)


@pytest.mark.parametrize("file_format", LOSSY)
def test_lossy_files_are_read(file_format):
    """At the right length and at the right place; the lossy codecs keep a sine within 2 % of full scale."""
    audio = read_audio(in_memory(encoded(sine(440, RATE, 9000), RATE, file_format, None)), sampling_rate=RATE)
    assert audio.shape == (9000,)
    np.testing.assert_allclose(audio[1000:-1000], sine(440, RATE, 9000)[1000:-1000], atol=0.02)


def test_a_file_at_an_address():
    with fsspec.open("memory://talk.wav", "wb") as file:
        file.write(encoded(clip(5)))
    np.testing.assert_array_equal(read_audio("memory://talk.wav", sampling_rate=RATE), clip(5))


@pytest.mark.parametrize("audio", [0.1 * np.random.default_rng(0).standard_normal(20000), sine(440, RATE, 20000)])
@pytest.mark.parametrize(
    ("file_format", "subtype"),
    [
        ("WAV", None), ("FLAC", None), *(pytest.param(*format_.values, None, marks=format_.marks) for format_ in LOSSY),
        # libsndfile cannot seek in these.
        ("WAV", "GSM610"), ("W64", "GSM610"), ("AIFF", "GSM610"), ("WAV", "G721_32"), ("AU", "G721_32"),
        ("AU", "G723_24"), ("AU", "G723_40"), ("WAV", "NMS_ADPCM_16"),
    ],
)  # fmt: skip
def test_parts_are_those_of_the_whole(file_format, subtype, audio):
    content = encoded(audio, RATE, file_format, subtype)
    whole = read_part(content)
    assert 20000 <= len(whole) <= 20480  # whole frames of GSM
    # An MP3 decoder that begins in the middle may round differently.
    for start, stop in ((0, 100), (7000, 9000), (19999, 20000), (3, 4)):
        np.testing.assert_allclose(read_part(content, start, stop), whole[start:stop], atol=1e-6)


@pytest.mark.parametrize("sampling_rate", [RATE, 24000])
def test_of_a_long_file_a_part_is_decoded(monkeypatch, sampling_rate):
    decoded = []
    read = soundfile.SoundFile.read

    def counted(file, *arguments, **settings):
        audio = read(file, *arguments, **settings)
        decoded.append(len(audio))
        return audio

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    content = encoded(np.zeros(100_000), RATE, "FLAC", None)
    assert read_part(content, 50_000, 51_200, sampling_rate).shape == (1200,)
    assert len(decoded) == 1
    assert decoded[0] < 1250


@pytest.mark.parametrize(("rate", "wanted"), [(44100, 16000), (8000, 16000), (16000, 22050), (48000, 44100)])
def test_resampled_parts_are_those_of_the_whole(rate, wanted):
    random = np.random.default_rng(0)
    content = encoded(0.2 * random.standard_normal(5001), rate)
    whole = read_part(content, sampling_rate=wanted)
    assert whole.shape == (-(-5001 * wanted // rate),)
    for _ in range(50):
        start = int(random.integers(len(whole)))
        stop = int(random.integers(start, len(whole))) + 1
        np.testing.assert_array_equal(read_part(content, start, stop, wanted), whole[start:stop])


STEREO = np.stack([sine(100, RATE, 300), np.full(300, 0.25)], axis=1)


HZ, WIDTH = "a sampling rate of 8000 Hz, not 16000 Hz", "2 channels, not one"
SLOW = (
    f"talk.wav has {HZ}; have it converted with resample=True (--resample, in a recipe --data.resample true), or train"
)
WIDE = f"talk.wav has {WIDTH}; have it converted with downmix=True (--downmix, in a recipe --data.downmix true), or"
BOTH = f"talk.wav has {HZ} and {WIDTH}; have it converted with resample=True"


@pytest.mark.parametrize(
    ("content", "message", "allowed", "samples"),
    [(encoded(clip(0), 8000), SLOW, "resample", 400), (encoded(STEREO), WIDE, "downmix", 300)],
    ids=["resample", "downmix"],
)
def test_another_kind_of_audio_is_an_error_unless_it_is_allowed(content, message, allowed, samples):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        read_audio(in_memory(content), sampling_rate=RATE)
    assert not isinstance(raised.value, UnreadableFileError)
    with pytest.raises(ValueError, match=re.escape(BOTH)):
        read_audio(in_memory(encoded(STEREO, 8000)), sampling_rate=RATE)
    audio = read_audio(in_memory(content), sampling_rate=RATE, **{allowed: True})
    assert audio.shape == (samples,)
    if allowed == "downmix":
        np.testing.assert_allclose(audio, STEREO.mean(axis=1), atol=1e-6)


def of_unknown_length() -> bytes:
    """A FLAC file as it comes out of a pipe: the number of samples, 36 bits of its header, is 0."""
    content = bytearray(encoded(clip(0), RATE, "FLAC"))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return bytes(content)


def with_one(value: float) -> bytes:
    return encoded(np.where(np.arange(200) == 100, value, clip(0)), RATE, "WAV", "FLOAT")


UNREADABLE = {
    "empty": (b"", "Format not recognised"),
    "of another kind": (CORRUPT, "Format not recognised"),
    "cut off": (
        encoded(0.1 * np.random.default_rng(0).standard_normal(4000), RATE, "FLAC")[:-6000],
        "samples 0 to 4000 cannot",
    ),
    "without a sample": (encoded(clip(0, 0)), "it holds no sample"),
    "of unknown length": (of_unknown_length(), "its header does not say how long it is; encode it anew"),
    "of an absurd rate": (
        encoded(clip(0, 40), 2_000_000, "WAV"),
        "its header says 2000000 Hz; rates of 100 to 1000000 Hz",
    ),
    "of no rate": (encoded(clip(0, 40), 1, "WAV"), "its header says 1 Hz"),
    "with NaN": (with_one(np.nan), "it holds values that are NaN or infinite"),
    "with infinity": (with_one(np.inf), "it holds values that are NaN or infinite"),
    "of 16 bits as float": (
        with_one(-32768.0),
        "its samples reach from -32768 to .*, beyond the limit of 10; full scale is 1, so divide them by .* 32768",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_files(kind):
    content, reason = UNREADABLE[kind]
    with pytest.raises(UnreadableFileError, match=rf"talk.wav: .*{reason}"):
        read_audio(in_memory(content), sampling_rate=RATE)


@pytest.mark.parametrize("file_format", ["WAV", "FLAC", "OGG", "AIFF", "AU", "CAF", "MP3"])
def test_damaged_files_are_read_or_unreadable(file_format, capfd):
    if file_format not in soundfile.available_formats():
        pytest.skip("libsndfile")
    file, random = encoded(sine(440, RATE, 2000), RATE, file_format, None), np.random.default_rng(0)
    for _ in range(40):
        changed = bytearray(file)
        for place in random.integers(
            min(len(file), random.choice([48, 300, 10**6])), size=random.choice([1, 1, 3, 10])
        ):
            changed[place] = random.choice([0, 255, random.integers(256)])
        with contextlib.suppress(UnreadableFileError):
            read_audio(in_memory(bytes(changed)), sampling_rate=RATE, resample=True, downmix=True)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("bad block"), TypeError(), EOFError(), MemoryError(), IndexError()])
@pytest.mark.parametrize("method", ["__init__", "seek", "read"])
def test_whatever_a_decoder_raises_makes_a_file_unreadable(monkeypatch, method, error):
    def fail(*arguments, **settings):
        raise error

    file = in_memory(encoded(clip(0, 40)))
    monkeypatch.setattr(soundfile.SoundFile, method, fail)
    if method == "__init__":
        monkeypatch.setattr(soundfile.SoundFile, "__del__", lambda self: None)  # it would close a file that is not open
    with pytest.raises(UnreadableFileError, match=rf"talk.wav: .*{type(error).__name__}"):
        read_audio(file, sampling_rate=RATE)


@pytest.mark.skipif("MP3" not in soundfile.available_formats(), reason="libsndfile")
def test_an_mp3_file_that_is_cut_off():
    content = encoded(sine(440, RATE, 30000), RATE, "MP3", None)
    with pytest.raises(UnreadableFileError, match=r"it is cut off after \d+ of 30000 samples"):
        read_audio(in_memory(content[: len(content) // 2]), sampling_rate=RATE)


def test_no_file_and_a_file_without_a_name(tmp_path):
    (tmp_path / "talk.wav").write_bytes(encoded(clip(1)))
    for part in ({"path": str(tmp_path / "talk.wav")}, {"bytes": encoded(clip(1))}):
        np.testing.assert_array_equal(read_audio(part, sampling_rate=RATE), clip(1))
    with pytest.raises(UnreadableFileError, match="there is no file"):
        read_audio({}, sampling_rate=RATE)
    with pytest.raises(ValueError, match="sampling_rate must be an integer of at least 1, got '16000'"):
        read_audio({"bytes": encoded(clip(1))}, sampling_rate="16000")
    for file in (None, {"bytes": None, "path": None}):
        with pytest.raises(UnreadableFileError, match="there is no file"):
            AudioFile(file, sampling_rate=RATE)
    with pytest.raises(UnreadableFileError, match="a file without a name: Format not recognised"):
        read_audio({"bytes": CORRUPT, "path": None}, sampling_rate=RATE)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("{folder}/nothing.wav", "No such file"),
        ("memory://nothing.wav", "nothing.wav"),
        ("{folder}", "Is a directory"),
        ("{folder}/headless.raw", "samplerate must be specified"),
    ],
)
def test_a_path_without_an_audio_file(tmp_path, name, reason):
    (tmp_path / "headless.raw").write_bytes(bytes(100))
    name = name.format(folder=tmp_path)
    with pytest.raises(UnreadableFileError, match=f"{name}: .*{reason}"):
        read_audio(name, sampling_rate=RATE)


def test_a_corrupt_part_is_found_where_it_is_read():
    np.testing.assert_array_equal(read_part(with_one(np.nan), 0, 100), clip(0)[:100])
    with pytest.raises(UnreadableFileError):
        read_part(with_one(np.nan), 0, 101)


def test_soundfile_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"soundfile is missing; install it with: pip install 'vpvae_hf\[audio\]'"):
        read_audio(in_memory(encoded(clip(0))), sampling_rate=RATE)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Fifteen clips of 200 samples in three uneven Parquet files."""
    return write_counted(tmp_path_factory.mktemp("shards"), 5, 3, 7)


def test_batches_are_audio_as_it_is(shards):
    batches = list(loader_of(shards, AudioSegment(length=50, sampling_rate=RATE, position="start"), batch_size=6))
    assert [tuple(batch.shape) for batch in batches] == [(6, 1, 50)] * 2 + [(3, 1, 50)]
    assert batches[0].dtype == torch.float32
    expected = torch.stack([torch.from_numpy(clip(number, 50)) for number in range(15)])[:, None]
    assert torch.equal(torch.cat(batches), expected)


@pytest.mark.parametrize(("position", "start"), [("start", 0), ("center", 75)])
def test_a_fixed_position(shards, position, start):
    transform = AudioSegment(length=50, sampling_rate=RATE, position=position)
    for batch in loader_of(shards, transform):
        assert starts_of([batch]) == [start]
        assert torch.equal(batch[0, 0], torch.from_numpy(clip(*numbers_of([batch]))[start : start + 50]))


def test_random_segments_reach_every_place(tmp_path):
    name = write_shards(tmp_path, [[encoded(clip(0))] * 300])
    counts = Counter(starts_of(loader_of(name, AudioSegment(length=195, sampling_rate=RATE), batch_size=50)))
    assert set(counts) == set(range(6))
    assert min(counts.values()) > 25


@pytest.mark.parametrize("position", ["random", "center", "start"])
@pytest.mark.parametrize("samples", [1, 49, 50])
def test_short_clips_are_followed_by_zeros(tmp_path, samples, position):
    name = write_counted(tmp_path, 2, samples=samples)
    (batch,) = loader_of(name, AudioSegment(length=50, sampling_rate=RATE, position=position), batch_size=2)
    expected = torch.zeros(2, 1, 50)
    expected[:, 0, :samples] = torch.from_numpy(np.stack([clip(0, samples), clip(1, samples)]))
    assert torch.equal(batch, expected)


def test_segments_are_resampled_where_that_is_allowed(tmp_path):
    ramp = np.linspace(-0.5, 0.5, 800)
    name = write_shards(tmp_path, [[encoded(ramp, 8000)]])
    (batch,) = loader_of(name, AudioSegment(length=100, sampling_rate=RATE, resample=True, position="center"))
    expected = np.interp(np.arange(750, 850) / 2, np.arange(800), ramp)
    np.testing.assert_allclose(batch[0, 0], expected, atol=0.002)


def test_another_kind_of_audio_stops_the_run(tmp_path):
    name = write_shards(tmp_path, [[encoded(clip(0)), encoded(clip(1)), encoded(np.zeros((200, 2)))]])
    batches = iter(loader_of(name, workers=1))
    assert numbers_of(itertools.islice(batches, 2)) == [0, 1]
    with pytest.raises(ValueError, match=r"2.wav has 2 channels, not one"):
        list(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_clips_of_any_length(tmp_path, workers):
    lengths = [200, 1, 77, 3000]
    name = write_shards(tmp_path, [[encoded(clip(number, length)) for number, length in enumerate(lengths)]])
    batches = list(loader_of(name, AudioClip(sampling_rate=RATE), workers=workers))
    assert [batch.shape for batch in batches] == [(1, 1, length) for length in lengths]
    assert all(torch.equal(batch[0, 0], torch.from_numpy(clip(n, lengths[n]))) for n, batch in enumerate(batches))


def test_clips_that_are_too_short_count_as_unreadable(tmp_path):
    name = write_shards(tmp_path, [[encoded(clip(number, length)) for number, length in enumerate((9, 10, 11))]])
    loader = loader_of(name, AudioClip(sampling_rate=RATE, shortest=10))
    assert numbers_of(loader) == [1, 2]
    assert loader.skipped == 1


def test_whole_clips_come_one_by_one(shards):
    with pytest.raises(ValueError, match="whole clips differ in length, got 4 at once; use a batch size of 1"):
        next(iter(loader_of(shards, AudioClip(sampling_rate=RATE), batch_size=4)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length must be an integer of at least 1, got 0"),
        ({"sampling_rate": 0}, "sampling_rate must be an integer of at least 1, got 0"),
        ({"position": "middle"}, "position must be random, center or start, got 'middle'"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        AudioSegment(**{"length": 50, "sampling_rate": RATE, **settings})


def test_masked_segments_tell_audio_from_what_follows_it(tmp_path):
    name = write_shards(tmp_path, [[encoded(clip(1, 50)), encoded(clip(2, 300)), encoded(clip(3, 9))]])
    loader = loader_of(name, MaskedAudioSegment(length=100, sampling_rate=RATE, shortest=10), batch_size=3)
    (batch,) = loader
    assert batch["input_values"].shape == (2, 1, 100)
    assert batch["padding_mask"].sum(dim=1).tolist() == [50, 100]
    assert batch["padding_mask"].dtype == torch.int64
    assert not batch["input_values"][0, 0, 50:].any()
    assert loader.skipped == 1
