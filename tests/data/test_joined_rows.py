"""Several splits as one."""

from collections import Counter

import pytest
from audio_files import RATE, clip, encoded, numbers_of, write_files, write_shards

from vpvae_hf.data import AudioClip, ItemLoader, ItemStream, open_audio

CLIP = AudioClip(sampling_rate=RATE)


def numbered(first: int, *counts: int) -> list[list[bytes]]:
    numbers = iter(range(first, first + sum(counts)))
    return [[encoded(clip(next(numbers))) for _ in range(count)] for count in counts]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clips 0..8 in the split train, of three shards, and 9..11 in test, of two."""
    folder = tmp_path_factory.mktemp("splits")
    write_shards(folder, numbered(0, 4, 3, 2), "train")
    return write_shards(folder, numbered(9, 2, 1), "test")


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_all_clips_of_both(data, ranks, streaming):
    source = open_audio(data, split="train+test", streaming=streaming)
    found = [number for rank in range(ranks) for number in numbers_of(loader(source, rank, ranks))]
    assert Counter(found) == Counter(range(12))


def test_shards_of_both_are_mixed(data):
    """In a shuffled pass clips of the second split come before the last ones of the first."""
    source = open_audio(data, split="train+test")
    orders = [numbers_of(ItemLoader(stream(source, seed=seed), batch_size=1)) for seed in range(8)]
    assert any(min(map(order.index, (9, 10, 11))) < max(map(order.index, range(9))) for order in orders)


def test_it_goes_on_where_it_stood(data):
    source = open_audio(data, split="train+test")
    whole = numbers_of(loader(source, 0, 1))
    first = loader(source, 0, 1)
    batches = iter(first)
    seen = numbers_of([next(batches) for _ in range(7)])
    state = first.state_dict()
    batches.close()
    second = loader(source, 0, 1)
    second.load_state_dict(state)
    assert seen + numbers_of(second) == whole


def test_folders_of_files(tmp_path):
    files = {f"train/{n}.wav": encoded(clip(n)) for n in range(3)} | {"test/a.wav": encoded(clip(7))}
    name = write_files(tmp_path / "folder", files)
    assert sorted(numbers_of(loader(open_audio(name, split="train+test"), 0, 1))) == [0, 1, 2, 7]


def test_rows_come_one_split_after_the_other(data):
    rows = list(open_audio(data, split="train+test", other_columns=True).rows)
    assert [row["label"] for row in rows] == [*range(9), *range(3)]


def test_each_must_be_there(data):
    with pytest.raises(ValueError, match="has no split 'dev'; it has train, test"):
        open_audio(data, split="train+dev")


def stream(source, seed=0, rank=0, ranks=1):
    return ItemStream(source, CLIP, shuffle_buffer=2, seed=seed, rank=rank, world_size=ranks)


def loader(source, rank, ranks):
    return ItemLoader(stream(source, rank=rank, ranks=ranks), batch_size=1)
