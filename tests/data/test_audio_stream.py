"""Streams of audio: which clips come, which part of them, and that they resume exactly."""

import itertools
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from audio_files import (
    CORRUPT,
    RATE,
    clip,
    encoded,
    numbers_of,
    starts_of,
    write_counted,
    write_files,
    write_shards,
)

from vpvae_hf.data import AudioClip, AudioSegment, ItemLoader, ItemStream, MaskedAudioSegment, open_audio, sources

RANDOM = {"shuffle_buffer": 4, "passes": None, "seed": 3}


def loader_of(name: str, cut=None, *, batch_size: int = 1, workers: int = 0, **settings) -> ItemLoader:
    """Of the split "train", of random segments of 50 samples unless told otherwise."""
    cut = cut or AudioSegment(length=50, sampling_rate=RATE)
    stream = ItemStream(open_audio(name, split="train"), cut, **settings)
    return ItemLoader(stream, batch_size=batch_size, workers=workers)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Fifteen clips of 200 samples in three uneven Parquet files."""
    return write_counted(tmp_path_factory.mktemp("shards"), 5, 3, 7)


@pytest.fixture
def folder(tmp_path_factory, monkeypatch):
    """Fifteen clips of 200 samples as files of two formats, five a shard."""
    monkeypatch.setattr(sources, "_FILES_PER_SHARD", 5)
    files = {
        f"speaker{number % 3}/{number:02d}.{kind}": encoded(clip(number), file_format=kind.upper())
        for number, kind in zip(range(15), itertools.cycle(("wav", "flac")), strict=False)
    }
    return write_files(tmp_path_factory.mktemp("folder"), files)


@pytest.fixture(params=["shards", "folder"])
def fifteen(request):
    """Either of them."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("shuffle_buffer", [1, 4])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (2, 2), (4, 0)])
def test_each_pass_has_every_clip_once(fifteen, ranks, workers, shuffle_buffer):
    shares = [
        numbers_of(loader_of(fifteen, workers=workers, shuffle_buffer=shuffle_buffer, rank=rank, world_size=ranks))
        for rank in range(ranks)
    ]
    assert sorted(itertools.chain(*shares)) == list(range(15))
    assert all(shares)


def test_batches_are_audio_as_it_is(shards):
    batches = list(loader_of(shards, AudioSegment(length=50, sampling_rate=RATE, position="start"), batch_size=6))
    assert [tuple(batch.shape) for batch in batches] == [(6, 1, 50)] * 2 + [(3, 1, 50)]
    assert batches[0].dtype == torch.float32
    expected = torch.stack([torch.from_numpy(clip(number, 50)) for number in range(15)])[:, None]
    assert torch.equal(torch.cat(batches), expected)


@pytest.mark.parametrize(("position", "start"), [("start", 0), ("center", 75)])
def test_a_fixed_position(shards, position, start):
    cut = AudioSegment(length=50, sampling_rate=RATE, position=position)
    for batch in loader_of(shards, cut):
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


def test_silence_is_kept(tmp_path):
    loader = loader_of(write_shards(tmp_path, [[encoded(np.zeros(200))] * 2]), batch_size=2)
    (batch,) = loader
    assert torch.equal(batch, torch.zeros(2, 1, 50))
    assert loader.skipped == 0


def test_segments_are_resampled_where_that_is_allowed(tmp_path):
    ramp = np.linspace(-0.5, 0.5, 800)
    name = write_shards(tmp_path, [[encoded(ramp, 8000)]])
    (batch,) = loader_of(name, AudioSegment(length=100, sampling_rate=RATE, resample=True, position="center"))
    expected = np.interp(np.arange(750, 850) / 2, np.arange(800), ramp)
    np.testing.assert_allclose(batch[0, 0], expected, atol=0.002)


def test_segments_depend_on_the_seed_alone(fifteen):
    def some(seed, batch_size):
        torch.manual_seed(torch.seed())  # other randomness must not matter
        loader = loader_of(fifteen, batch_size=batch_size, **{**RANDOM, "seed": seed})
        return torch.cat(list(itertools.islice(loader, 30 // batch_size)))

    assert torch.equal(some(0, 2), some(0, 3))
    assert starts_of([some(0, 2)]) != starts_of([some(1, 2)])
    assert len(set(starts_of([some(0, 2)]))) > 15


@pytest.mark.parametrize(("workers", "after"), [(0, 0), (0, 1), (0, 3), (0, 9), (2, 0), (2, 7)])
def test_resumes_exactly(fifteen, workers, after):
    settings = {"batch_size": 2, "workers": workers, **RANDOM}
    loader = loader_of(fifteen, **settings)
    batches = iter(loader)
    for _ in range(after):
        next(batches)
    state = loader.state_dict()
    expected = list(itertools.islice(batches, 9))
    resumed = loader_of(fifteen, **settings)
    resumed.load_state_dict(state)
    torch.testing.assert_close(list(itertools.islice(resumed, 9)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_clips_are_skipped_and_counted(tmp_path, workers):
    good = [encoded(clip(number)) for number in range(4)]
    shards = [[CORRUPT, good[0], None, b"", good[1]], [good[2], encoded(clip(0, 0)), good[3], CORRUPT]]
    loader = loader_of(write_shards(tmp_path, shards), batch_size=2, workers=workers)
    assert sorted(numbers_of(loader)) == list(range(4))
    assert loader.skipped == 5


@pytest.mark.parametrize(
    ("workers", "file", "message"),
    [
        (0, encoded(clip(0), 8000), "has a sampling rate of 8000 Hz, wanted are 16000 Hz; allow resampling"),
        (0, encoded(np.zeros((200, 2))), "has 2 channels, wanted is one; allow their mean"),
        (1, encoded(np.zeros((200, 2))), "has 2 channels, wanted is one; allow their mean"),
    ],
)
def test_another_kind_of_audio_stops_the_run(tmp_path, workers, file, message):
    name = write_shards(tmp_path, [[encoded(clip(0)), encoded(clip(1)), file]])
    batches = iter(loader_of(name, workers=workers))
    assert numbers_of(itertools.islice(batches, 2)) == [0, 1]
    with pytest.raises(ValueError, match=f"2.wav {message}"):
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


def test_cuts_go_to_other_processes():
    cut = AudioSegment(length=50, sampling_rate=RATE, resample=True)
    assert pickle.loads(pickle.dumps(cut)) == cut


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
    name = write_files(
        tmp_path, {"a.wav": encoded(clip(1, 50)), "b.wav": encoded(clip(2, 300)), "c.wav": encoded(clip(3, 9))}
    )
    cut = MaskedAudioSegment(length=100, sampling_rate=RATE, shortest=10)
    loader = ItemLoader(ItemStream(open_audio(name, split="train"), cut), batch_size=3)
    (batch,) = loader
    assert batch["input_values"].shape == (2, 1, 100)
    assert batch["padding_mask"].sum(dim=1).tolist() == [50, 100]
    assert batch["padding_mask"].dtype == torch.int64
    assert not batch["input_values"][0, 0, 50:].any()
    assert loader.skipped == 1
