"""Streams of images and of audio: which items come in what order, what is skipped how, and that they resume exactly."""

import itertools
import re
from collections import Counter

import audio_files
import image_shards
import pytest
import torch

from vpvae_hf.data import ItemLoader, ItemStream, check_readable, sources, streams

MODALITIES = {"image": image_shards, "audio": audio_files}


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """Fifteen items of each modality in three uneven shards."""
    return {
        name: modality.write_counted(tmp_path_factory.mktemp(name), 5, 3, 7) for name, modality in MODALITIES.items()
    }


@pytest.fixture(scope="module")
def audio_folder(tmp_path_factory):
    """Fifteen clips as files of two formats."""
    files = {}
    for number in range(15):
        kind = ("wav", "flac")[number % 2]
        content = audio_files.encoded(audio_files.clip(number), file_format=kind.upper())
        files[f"speaker{number % 3}/{number:02d}.{kind}"] = content
    return audio_files.write_files(tmp_path_factory.mktemp("folder"), files)


@pytest.fixture(params=[*MODALITIES, "audio folder"])
def fifteen(request, counted, monkeypatch):
    """(module, data set) of fifteen items in three shards."""
    if request.param in MODALITIES:
        return MODALITIES[request.param], counted[request.param]
    monkeypatch.setattr(sources, "_FILES_PER_SHARD", 5)
    return audio_files, request.getfixturevalue("audio_folder")


def random_loader(modality, name, **settings) -> ItemLoader:
    return modality.loader_of(name, **{"shuffle_buffer": 4, "passes": None, "seed": 3, **modality.RANDOM, **settings})


def some(batches, count: int) -> list[torch.Tensor]:
    return list(itertools.islice(batches, count))


def equal(batches, expected) -> None:
    torch.testing.assert_close(batches, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("counts", "ranks", "workers", "shuffle_buffer"),
    [
        *itertools.product([(5, 3, 7)], [1, 4], [0], [1, 4]),
        *itertools.product([(1, 8)], [5], [0], [1, 4]),
        *itertools.product([(2, 0, 1, 3, 2)], [2], [0], [1, 4]),
        ((5, 3, 7), 2, 2, 4),
        ((9,), 3, 2, 4),
    ],
)
def test_each_pass_has_every_item_once(modality, tmp_path, counts, ranks, workers, shuffle_buffer):
    name, how = modality.write_counted(tmp_path, *counts), {"workers": workers, "shuffle_buffer": shuffle_buffer}
    shares = [
        modality.numbers_of(modality.loader_of(name, rank=rank, world_size=ranks, **how)) for rank in range(ranks)
    ]
    assert sorted(itertools.chain(*shares)) == list(range(sum(counts)))
    if ranks <= sum(count > 0 for count in counts):
        assert all(shares)


@pytest.mark.parametrize(("limit", "ranks"), [(3, 2), (2, 5), (1, 1)])
@pytest.mark.parametrize("shuffle_buffer", [1, 3])
def test_many_shards_are_dealt_out_in_groups(modality, tmp_path, monkeypatch, limit, ranks, shuffle_buffer):
    monkeypatch.setattr(streams, "_MOST_GROUPS", limit)
    name, how = modality.write_counted(tmp_path, *[1] * 8), {"shuffle_buffer": shuffle_buffer, "world_size": ranks}
    numbers = [modality.numbers_of(modality.loader_of(name, rank=rank, **how)) for rank in range(ranks)]
    assert sorted(itertools.chain(*numbers)) == list(range(8))
    assert max(map(len, numbers)) - min(map(len, numbers)) <= 8 // min(8, max(limit, ranks)) + 1
    assert modality.OPEN(name, split="train").rows.num_shards == 8


@pytest.mark.parametrize("threads", [1, 3])
def test_without_a_shuffle_buffer_items_come_in_order_in_full_batches(modality, counted, request, threads):
    name = counted[request.node.callspec.params["modality"]]
    batches = list(modality.loader_of(name, batch_size=6, threads=threads))
    assert modality.numbers_of(batches) == list(range(15))
    assert [len(batch) for batch in batches] == [6, 6, 3]


@pytest.fixture
def copies(monkeypatch):
    """Copies to a pretended CUDA device: type, whether of pinned memory, and whether they are waited for."""
    found, real_to = [], torch.Tensor.to

    def pin(tensor):
        pinned = tensor.clone()
        pinned.lies_pinned = True
        return pinned

    def to(tensor, *where, non_blocking=False):
        if where != (torch.device("cuda"),):
            return real_to(tensor, *where)
        found.append((tensor.dtype, hasattr(tensor, "lies_pinned"), not non_blocking))
        return tensor

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_travel_to_a_gpu_as_items_from_pinned_memory(modality, counted, request, workers, copies):
    name, how = counted[request.node.callspec.params["modality"]], {"batch_size": 4, "workers": workers}
    expected = some(random_loader(modality, name, **how), 6)
    loader, resumed = (random_loader(modality, name, device="cuda", **how) for _ in range(2))
    equal(some(loader, 2), expected[:2])
    resumed.load_state_dict(loader.state_dict())
    equal(some(resumed, 4), expected[2:])
    items = torch.uint8 if modality is image_shards else torch.float32
    assert set(copies) == {(items, True, False)}


def test_batches_are_converted_on_their_device(modality, counted, request):
    name = counted[request.node.callspec.params["modality"]]
    (expected,), (batch,) = (modality.loader_of(name, batch_size=15, device=device) for device in ("cpu", "meta"))
    assert batch.device.type == "meta"
    assert (batch.shape, batch.stride(), batch.dtype) == (expected.shape, expected.stride(), torch.float32)
    assert expected.is_contiguous()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_finite_loader_gives_the_whole_pass_again_and_again(fifteen, workers):
    modality, name = fifteen
    loader = modality.loader_of(name, batch_size=2, workers=workers, shuffle_buffer=4)
    first = modality.numbers_of(loader)
    assert sorted(first) == list(range(15))
    assert modality.numbers_of(loader) == first
    assert modality.numbers_of(some(loader, 3)) == first[:6]
    assert modality.numbers_of(loader) == first


@pytest.mark.parametrize("workers", [0, 2])
def test_an_endless_stream_has_another_order_in_each_pass(modality, tmp_path, workers):
    name = modality.write_counted(tmp_path, *[2] * 8)
    assert Counter(modality.numbers_of(modality.loader_of(name, workers=workers, passes=3))) == dict.fromkeys(
        range(16), 3
    )
    batches = iter(modality.loader_of(name, workers=workers, shuffle_buffer=2, passes=None))
    passes = [modality.numbers_of(some(batches, 16)) for _ in range(4)]
    assert all(sorted(numbers) == list(range(16)) for numbers in passes)
    assert len(set(map(tuple, passes))) == 4
    assert len({tuple(number // 2 for number in numbers) for numbers in passes}) > 1


def test_threads_change_no_item(fifteen):
    modality, name = fifteen
    loaders = [random_loader(modality, name, batch_size=2, threads=threads) for threads in (1, 3)]
    equal(*(some(loader, 12) for loader in loaders))


def test_order_and_items_depend_on_the_seed_alone(fifteen):
    modality, name = fifteen

    def items(seed, batch_size):
        torch.manual_seed(torch.seed())  # other randomness must not matter
        return torch.cat(some(random_loader(modality, name, seed=seed, batch_size=batch_size), 30 // batch_size))

    assert torch.equal(items(0, 2), items(0, 3))
    assert modality.numbers_of([items(0, 2)]) != modality.numbers_of([items(1, 2)])
    if modality is audio_files:
        assert len(set(modality.starts_of([items(0, 2)]))) > 15


def test_a_shard_is_shuffled_within_blocks(modality, tmp_path):
    numbers = modality.numbers_of(modality.loader_of(modality.write_counted(tmp_path, 30), shuffle_buffer=10))
    blocks = [numbers[start : start + 10] for start in range(0, 30, 10)]
    assert [sorted(block) for block in blocks] == [list(range(start, start + 10)) for start in range(0, 30, 10)]
    assert all(block != sorted(block) for block in blocks)


@pytest.mark.parametrize(("workers", "after"), [*((0, after) for after in (*range(9), 12)), (2, 0), (2, 7)])
def test_resumes_exactly(fifteen, workers, after):
    """Blocks hold two batches, and a pass fifteen items, so some of the places lie across blocks and passes."""
    modality, name = fifteen
    loader, resumed = (random_loader(modality, name, batch_size=2, workers=workers) for _ in range(2))
    batches = iter(loader)
    some(batches, after)
    state = loader.state_dict()
    expected = some(batches, 9)
    resumed.load_state_dict(state)
    equal(some(resumed, 9), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_a_resumed_run(fifteen, workers):
    modality, name = fifteen
    whole = some(random_loader(modality, name, batch_size=2, workers=workers), 15)
    state, pieces = None, []
    for _ in range(3):
        loader = random_loader(modality, name, batch_size=2, workers=workers)
        if state is not None:
            loader.load_state_dict(state)
        pieces += some(loader, 5)
        state = loader.state_dict()
    equal(pieces, whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_finite_stream_resumes_and_then_starts_anew(fifteen, workers):
    modality, name = fifteen
    loader, resumed = (modality.loader_of(name, batch_size=2, workers=workers, shuffle_buffer=4) for _ in range(2))
    whole = modality.numbers_of(loader)
    modality.numbers_of(some(batches := iter(loader), 3))
    resumed.load_state_dict(loader.state_dict())
    batches.close()
    assert modality.numbers_of(resumed) == whole[6:]
    assert modality.numbers_of(resumed) == whole


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_share_a_shard_resume(modality, tmp_path, rank):
    name = modality.write_counted(tmp_path, 11)
    loader, resumed = (random_loader(modality, name, rank=rank, world_size=2) for _ in range(2))
    some(batches := iter(loader), 7)
    resumed.load_state_dict(loader.state_dict())
    equal(some(resumed, 8), some(batches, 8))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", [{}, {"shuffle_buffer": 4}, {"threads": 2}], ids=str)
def test_unreadable_files_are_skipped_and_counted(modality, tmp_path, workers, how, caplog):
    """First, last, and several in a row; the last have no readable file after them."""
    good, corrupt = [modality.file(number) for number in range(5)], modality.CORRUPT
    shards = [[corrupt, good[0], b"", corrupt, good[1]], [good[2], good[3], good[4], corrupt, corrupt], [corrupt]]
    name = modality.write_shards(tmp_path, shards)
    loader = modality.loader_of(name, batch_size=2, workers=workers, **how)
    assert sorted(modality.numbers_of(loader)) == list(range(5))
    assert loader.skipped == 6
    reason = {"image": "it is no image", "audio": "Format not recognised"}[modality.KIND.split()[0]]
    assert re.fullmatch(
        rf"skipped [1-4] unreadable {modality.KIND}s of {name}, the first: .*{reason}.*", caplog.messages[0]
    )
    assert caplog.messages[-1].startswith(f"skipped 6 unreadable {modality.KIND}s of {name}, the first: ")
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_the_count_of_unreadable_files_is_resumed(modality, tmp_path, workers, caplog):
    shard = [modality.CORRUPT, *map(modality.file, range(3)), modality.CORRUPT]
    name = modality.write_shards(tmp_path, [shard, shard])
    loader, resumed = (modality.loader_of(name, workers=workers, shuffle_buffer=2, passes=None) for _ in range(2))
    batches = iter(loader)
    some(batches, 7)
    skipped = loader.skipped
    assert skipped >= 2
    resumed.load_state_dict(loader.state_dict())
    assert resumed.skipped == skipped
    again = iter(resumed)
    some(batches, 12), some(again, 12)
    assert resumed.skipped == loader.skipped > skipped
    again.close()
    times = f"skipped unreadable {modality.KIND}s of {name} {resumed.skipped} times, each file once per pass, the first"
    assert times in caplog.messages[-1]


def test_an_endless_stream_of_unreadable_files_stops(modality, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MOST_UNREADABLE", 5)
    name = modality.write_shards(
        tmp_path, [[modality.file(0), modality.CORRUPT, modality.CORRUPT], [modality.CORRUPT] * 3]
    )
    message = f"5 {modality.KIND}s in a row cannot be read; see whether the files of column '{modality.COLUMN}'"
    with pytest.raises(ValueError, match=message):
        list(modality.loader_of(name))
    monkeypatch.setattr(streams, "MOST_UNREADABLE", 6)
    assert modality.numbers_of(some(modality.loader_of(name, passes=None), 3)) == [0, 0, 0]


def test_a_rank_without_a_row(modality, tmp_path):
    """An endless stream would look for a row for ever."""
    name, share = modality.write_counted(tmp_path, 4, 0), {"rank": 1, "world_size": 2}
    assert modality.numbers_of(modality.loader_of(name, **share)) == []
    message = f"none of the {modality.KIND}s of {name} is available for rank 1 of 2; use fewer ranks, or more data"
    with pytest.raises(ValueError, match=message):
        next(iter(modality.loader_of(name, passes=None, **share)))


@pytest.mark.parametrize("rest", [0, 1])
def test_a_worker_without_a_readable_file_has_nothing_to_do(modality, tmp_path, monkeypatch, rest):
    """One file, or one and a corrupt one, leaves nothing for the second of two workers."""
    monkeypatch.setattr(streams, "MOST_UNREADABLE", 3)
    name = modality.write_shards(tmp_path, [[modality.file(3), *[modality.CORRUPT] * rest]])
    loader, resumed = (random_loader(modality, name, workers=2, batch_size=2) for _ in range(2))
    batches = iter(loader)
    assert modality.numbers_of(some(batches, 6)) == [3] * 12
    resumed.load_state_dict(loader.state_dict())
    equal(some(resumed, 4), some(batches, 4))
    with pytest.raises(ValueError, match=r"none of the .* can be read \(the first: .*\) for rank 0 of 1"):
        list(random_loader(modality, modality.write_shards(tmp_path / "bad", [[modality.CORRUPT]]), workers=rest))


def truncate(file) -> None:
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_shard_is_named(modality, tmp_path, workers):
    loader = modality.loader_of(modality.write_counted(tmp_path, 2, 2, 2), workers=workers)
    truncate(next(tmp_path.rglob("train-00001-of-00003.parquet")))
    with pytest.raises(ValueError, match=r"^part 1 of 3 of the data set cannot be read after row 0: .*remove the file"):
        list(loader)


def test_a_corrupt_first_shard_is_found_early_and_items_before_another_are_given(modality, tmp_path):
    source = modality.OPEN(modality.write_counted(tmp_path, 2, 2), split="train")
    truncate(next(tmp_path.rglob("train-00001-of-00002.parquet")))
    check_readable(source, modality.whole())
    assert modality.numbers_of(some(ItemLoader(ItemStream(source, modality.whole()), batch_size=1), 2)) == [0, 1]
    truncate(next(tmp_path.rglob("train-00000-of-00002.parquet")))
    with pytest.raises(ValueError, match="part 0 of 2 of the data set cannot be read"):
        check_readable(source, modality.whole())


@pytest.mark.parametrize(
    ("files", "message"),
    [([], "it is empty"), ([b"no", b"image"], "the first 2 rows of column '{}' hold no readable {} .the first: ")],
)
def test_data_that_cannot_be_used_is_found_early(modality, tmp_path, files, message):
    with pytest.raises(ValueError, match=message.format(modality.COLUMN, modality.KIND)):
        check_readable(modality.OPEN(modality.write_shards(tmp_path, [files]), split="train"), modality.whole())
