"""Streams of crops: which images come, in which order, cropped how, and that they resume exactly."""

import itertools
from collections import Counter

import pytest
import torch
from image_shards import (
    CORRUPT,
    bytes_of,
    encoded,
    loader_of,
    numbers_of,
    picture,
    stream_of,
    write_counted,
    write_shards,
)

from vpvae_hf.data import ItemLoader, streams

datasets = pytest.importorskip("datasets")

AUGMENTED = {"size": 8, "crop": "random", "flip": True, "shuffle_buffer": 4, "passes": None, "seed": 3}


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """Fifteen images in three uneven shards."""
    return write_counted(tmp_path_factory.mktemp("counted"), 5, 3, 7)


@pytest.mark.parametrize("shuffle_buffer", [1, 4])
@pytest.mark.parametrize(
    ("counts", "ranks", "workers"),
    [
        ((5, 3, 7), 1, 0),
        ((5, 3, 7), 2, 0),
        ((5, 3, 7), 3, 0),
        ((5, 3, 7), 4, 0),
        ((5, 3, 7), 2, 2),
        ((9,), 3, 2),
        ((1, 8), 5, 0),
        ((2, 0, 1, 3, 2), 2, 0),
    ],
)
def test_each_pass_has_every_image_once(tmp_path, counts, ranks, workers, shuffle_buffer):
    name = write_counted(tmp_path, *counts)
    shares = [
        numbers_of(loader_of(name, workers=workers, shuffle_buffer=shuffle_buffer, rank=rank, world_size=ranks))
        for rank in range(ranks)
    ]
    assert sorted(itertools.chain(*shares)) == list(range(sum(counts)))
    if ranks <= sum(count > 0 for count in counts):
        assert all(shares)


def test_without_a_shuffle_buffer_images_come_in_order(counted):
    assert numbers_of(loader_of(counted, batch_size=4)) == list(range(15))


def test_batches_are_full_until_the_last(counted):
    assert [tuple(batch.shape) for batch in loader_of(counted, batch_size=6)] == [(6, 3, 12, 12)] * 2 + [(3, 3, 12, 12)]


def test_pixel_values_are_those_of_the_image(counted):
    (first, *_) = loader_of(counted, batch_size=1)
    assert first.dtype == torch.float32
    assert torch.equal(first[0], torch.from_numpy(picture(0)).movedim(-1, 0) / 127.5 - 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_finite_loader_gives_the_whole_pass_again_and_again(counted, workers):
    loader = loader_of(counted, batch_size=2, workers=workers, shuffle_buffer=4)
    first = numbers_of(loader)
    assert sorted(first) == list(range(15))
    assert numbers_of(loader) == first
    assert numbers_of(itertools.islice(loader, 3)) == first[:6]
    assert numbers_of(loader) == first


@pytest.mark.parametrize("workers", [0, 2])
def test_an_endless_stream_has_another_order_in_each_pass(tmp_path, workers):
    name = write_counted(tmp_path, *[2] * 8)
    batches = iter(loader_of(name, workers=workers, shuffle_buffer=2, passes=None))
    passes = [numbers_of(itertools.islice(batches, 16)) for _ in range(4)]
    assert all(sorted(numbers) == list(range(16)) for numbers in passes)
    assert len(set(map(tuple, passes))) == 4
    shards_in_order = {tuple(number // 2 for number in numbers) for numbers in passes}
    assert len(shards_in_order) > 1


def test_passes_are_counted(counted):
    counter = Counter(numbers_of(loader_of(counted, passes=3, shuffle_buffer=4)))
    assert counter == dict.fromkeys(range(15), 3)


def test_order_and_crops_depend_on_the_seed_alone(counted):
    def some(seed):
        torch.manual_seed(torch.seed())  # other randomness must not matter
        return torch.cat(list(itertools.islice(loader_of(counted, **{**AUGMENTED, "seed": seed}), 30)))

    assert torch.equal(some(0), some(0))
    assert numbers_of([some(0)]) != numbers_of([some(1)])


def test_a_shard_is_shuffled_within_blocks(tmp_path):
    numbers = numbers_of(loader_of(write_counted(tmp_path, 40), shuffle_buffer=10))
    blocks = [numbers[start : start + 10] for start in range(0, 40, 10)]
    assert [sorted(block) for block in blocks] == [list(range(start, start + 10)) for start in range(0, 40, 10)]
    assert all(block != sorted(block) for block in blocks)


@pytest.mark.parametrize(
    ("workers", "after"), [*((0, after) for after in range(13)), *((2, after) for after in (0, 2, 7))]
)
def test_resumes_exactly(counted, workers, after):
    """Blocks hold two batches, and a pass fifteen images, so some of the places lie across blocks and passes."""
    settings = {"batch_size": 2, "workers": workers, **AUGMENTED}
    loader = loader_of(counted, **settings)
    batches = iter(loader)
    for _ in range(after):
        next(batches)
    state = loader.state_dict()
    expected = list(itertools.islice(batches, 9))
    resumed = loader_of(counted, **settings)
    resumed.load_state_dict(state)
    torch.testing.assert_close(list(itertools.islice(resumed, 9)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_a_resumed_run(counted, workers):
    settings = {"batch_size": 2, "workers": workers, **AUGMENTED}
    whole = list(itertools.islice(loader_of(counted, **settings), 15))
    state, pieces = None, []
    for _ in range(3):
        loader = loader_of(counted, **settings)
        if state is not None:
            loader.load_state_dict(state)
        pieces += itertools.islice(loader, 5)
        state = loader.state_dict()
    torch.testing.assert_close(pieces, whole, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_finite_stream_resumes_and_then_starts_anew(counted, workers):
    settings = {"batch_size": 2, "workers": workers, "shuffle_buffer": 4}
    whole = numbers_of(loader_of(counted, **settings))
    loader = loader_of(counted, **settings)
    batches = iter(loader)
    numbers_of(next(batches) for _ in range(3))
    resumed = loader_of(counted, **settings)
    resumed.load_state_dict(loader.state_dict())
    assert numbers_of(resumed) == whole[6:]
    assert numbers_of(resumed) == whole


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_share_a_shard_resume(tmp_path, rank):
    name = write_counted(tmp_path, 11)
    settings = {**AUGMENTED, "rank": rank, "world_size": 2}
    loader = loader_of(name, **settings)
    batches = iter(loader)
    for _ in range(7):
        next(batches)
    resumed = loader_of(name, **settings)
    resumed.load_state_dict(loader.state_dict())
    expected = list(itertools.islice(batches, 8))
    torch.testing.assert_close(list(itertools.islice(resumed, 8)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle_buffer", [1, 4])
def test_unreadable_images_are_skipped_and_counted(tmp_path, workers, shuffle_buffer):
    """First, last, and several in a row; the last have no image after them."""
    good = [encoded(picture(number)) for number in range(5)]
    shards = [[CORRUPT, good[0], CORRUPT, CORRUPT, good[1]], [good[2], good[3], good[4], CORRUPT, CORRUPT], [CORRUPT]]
    loader = loader_of(write_shards(tmp_path, shards), batch_size=2, workers=workers, shuffle_buffer=shuffle_buffer)
    assert sorted(numbers_of(loader)) == list(range(5))
    assert loader.skipped == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_the_count_of_unreadable_images_is_resumed(tmp_path, workers):
    shard = [CORRUPT, *(encoded(picture(number)) for number in range(3)), CORRUPT]
    name = write_shards(tmp_path, [shard, shard])
    settings = {"workers": workers, "shuffle_buffer": 2, "passes": None}
    loader = loader_of(name, **settings)
    batches = iter(loader)
    for _ in range(7):
        next(batches)
    skipped, state = loader.skipped, loader.state_dict()
    assert skipped >= 2
    resumed = loader_of(name, **settings)
    resumed.load_state_dict(state)
    assert resumed.skipped == skipped
    again = iter(resumed)
    for _ in range(12):
        next(batches), next(again)
    assert resumed.skipped == loader.skipped > skipped


def test_an_endless_stream_of_unreadable_images_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_MOST_UNREADABLE", 5)
    name = write_shards(tmp_path, [[encoded(picture(0)), CORRUPT, CORRUPT], [CORRUPT] * 3])
    with pytest.raises(ValueError, match="5 images in a row cannot be read; see whether the files of column 'photo'"):
        list(loader_of(name))
    monkeypatch.setattr(streams, "_MOST_UNREADABLE", 6)
    assert numbers_of(itertools.islice(loader_of(name, passes=None), 3)) == [0, 0, 0]


@pytest.mark.parametrize(("height", "width", "top", "left"), [(12, 30, 0, 9), (31, 12, 9, 0), (15, 20, 1, 4)])
def test_center_crops(tmp_path, height, width, top, left):
    name = write_shards(tmp_path, [[encoded(picture(7, height, width))]])
    (crop,) = bytes_of(next(iter(loader_of(name))))
    assert torch.equal(crop, torch.from_numpy(picture(7, height, width)[top : top + 12, left : left + 12].copy()))


def test_random_crops_reach_every_place_and_half_are_mirrored(tmp_path):
    name = write_shards(tmp_path, [[encoded(picture(7, 8, 11))]])
    crops = torch.cat(list(itertools.islice(loader_of(name, batch_size=50, **AUGMENTED), 5)))
    seen = Counter()
    for crop in bytes_of(crops):
        columns = crop[0, :, 2].tolist()
        mirrored = columns[0] > columns[-1]
        left = min(columns)
        assert columns == sorted(range(left, left + 8), reverse=mirrored)
        assert crop[:, 0, 1].tolist() == list(range(8))
        seen[left, mirrored] += 1
    assert set(seen) == set(itertools.product(range(4), (False, True)))
    assert min(seen.values()) > 12


def test_without_flip_none_is_mirrored(tmp_path):
    name = write_shards(tmp_path, [[encoded(picture(7, 8, 11))]])
    crops = torch.cat(list(itertools.islice(loader_of(name, **{**AUGMENTED, "flip": False}), 30)))
    assert (bytes_of(crops)[:, 0, 0, 2] < bytes_of(crops)[:, 0, 7, 2]).all()


@pytest.mark.parametrize("shortest_side", [None, 12])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_small_images_are_enlarged_to_the_crop(tmp_path, shortest_side, crop):
    name = write_shards(tmp_path, [[encoded(picture(7, 6, 9))]])
    (image,) = bytes_of(next(iter(loader_of(name, shortest_side=shortest_side, crop=crop))))
    assert image.shape == (12, 12, 3)
    assert (image[..., 0] == 7).all()
    assert (image[0, 0, 1], image[-1, 0, 1]) == (0, 5)


def test_large_images_are_scaled_where_that_is_asked(tmp_path):
    name = write_shards(tmp_path, [[encoded(picture(7, 24, 24))]])
    (whole,) = bytes_of(next(iter(loader_of(name, shortest_side=12))))
    (middle,) = bytes_of(next(iter(loader_of(name))))
    assert (whole[0, 0, 1] <= 1) & (whole[-1, 0, 1] >= 22)
    assert middle[:, 0, 1].tolist() == list(range(6, 18))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size must be an integer of at least 1, got 0"),
        ({"shuffle_buffer": 0}, "shuffle_buffer must be an integer of at least 1, got 0"),
        ({"size": 12, "shortest_side": 11}, "shortest_side must be at least the size of a crop, 12, got 11"),
    ],
)
def test_settings_out_of_range(counted, settings, message):
    with pytest.raises(ValueError, match=message):
        stream_of(counted, **settings)


def test_a_reader_without_a_row_of_an_endless_stream(tmp_path):
    """It would look for one for ever."""
    name = write_counted(tmp_path, 4, 0)
    endless = stream_of(name, passes=None, rank=1, world_size=2)
    with pytest.raises(ValueError, match="no row for one of its readers; use fewer ranks or loader workers, or more"):
        next(iter(ItemLoader(endless, batch_size=1)))


def test_a_reader_without_a_row_of_a_finite_stream(tmp_path):
    assert numbers_of(loader_of(write_counted(tmp_path, 4, 0), rank=1, world_size=2)) == []
