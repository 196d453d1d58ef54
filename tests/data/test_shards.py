"""Opening data sets, and what is told about those that cannot be used."""

import itertools

import pytest
import torch
from image_shards import bytes_of, encoded, loader_of, numbers_of, picture, write_counted, write_shards

from vpvae_hf.data import ImageCrop, ItemLoader, ItemStream, check_readable, open_images, streams

datasets = pytest.importorskip("datasets")

CROP = ImageCrop(size=12)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of its own for the `datasets` library."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write_images(folder, count: int) -> str:
    """A plain folder of PNG files."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(encoded(picture(number)))
    return str(folder)


def truncate(file) -> None:
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_shard_is_named(tmp_path, workers):
    name = write_counted(tmp_path, 2, 2, 2)
    loader = loader_of(name, workers=workers)
    truncate(tmp_path / "data" / "train-00001-of-00003.parquet")
    with pytest.raises(ValueError, match=r"part 1 of 3 of the data set cannot be read after row 0: .*remove the file"):
        list(loader)


def test_images_before_a_corrupt_shard_are_given(tmp_path):
    batches = iter(loader_of(write_counted(tmp_path, 2, 2)))
    truncate(tmp_path / "data" / "train-00001-of-00002.parquet")
    assert numbers_of(itertools.islice(batches, 2)) == [0, 1]


@pytest.mark.parametrize(("limit", "ranks"), [(3, 2), (2, 5), (1, 1)])
@pytest.mark.parametrize("shuffle_buffer", [1, 3])
def test_many_shards_are_dealt_out_in_groups(tmp_path, monkeypatch, limit, ranks, shuffle_buffer):
    monkeypatch.setattr(streams, "_MOST_GROUPS", limit)
    name = write_counted(tmp_path, *[1] * 8)
    settings = {"shuffle_buffer": shuffle_buffer, "world_size": ranks}
    numbers = [numbers_of(loader_of(name, rank=rank, **settings)) for rank in range(ranks)]
    assert sorted(itertools.chain(*numbers)) == list(range(8))
    assert max(map(len, numbers)) - min(map(len, numbers)) <= 8 // min(8, max(limit, ranks)) + 1
    assert open_images(name, split="train").rows.num_shards == 8


def test_a_folder_of_image_files(tmp_path):
    name = write_images(tmp_path / "files", 11)
    assert sorted(numbers_of(loader_of(name, batch_size=3, shuffle_buffer=4))) == list(range(11))


def test_without_streaming_the_images_are_the_same(tmp_path):
    name = write_counted(tmp_path, 5, 3)
    streamed, prepared = (
        ItemLoader(ItemStream(open_images(name, split="train", streaming=streaming), CROP), batch_size=8)
        for streaming in (True, False)
    )
    torch.testing.assert_close(list(prepared), list(streamed), rtol=0, atol=0)


def test_without_streaming_ranks_and_workers_share_the_images(tmp_path):
    source = open_images(write_counted(tmp_path, 9), split="train", streaming=False)
    streams = [ItemStream(source, CROP, rank=rank, world_size=2, shuffle_buffer=3) for rank in range(2)]
    numbers = [numbers_of(ItemLoader(stream, batch_size=2, workers=2)) for stream in streams]
    assert sorted(itertools.chain(*numbers)) == list(range(9))
    assert all(numbers)


def test_a_slice_is_read_where_nothing_is_streamed(tmp_path):
    name = write_counted(tmp_path, 5, 3)
    source = open_images(name, split="train[2:6]", streaming=False)
    assert numbers_of(ItemLoader(ItemStream(source, CROP), batch_size=8)) == [2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"a stream has no slices, got split 'train\[2:6\]'; name a whole split"):
        open_images(name, split="train[2:6]")


def test_other_columns_are_kept_where_that_is_asked(tmp_path):
    name = write_counted(tmp_path, 2, 1)
    assert [set(row) for row in open_images(name, split="train").rows] == [{"photo"}] * 3
    rows = list(open_images(name, split="train", other_columns=True).rows)
    assert [row["label"] for row in rows] == [0, 1, 2]
    assert rows[2]["photo"]["bytes"] == encoded(picture(2))


def two_image_columns(folder) -> str:
    features = datasets.Features(dict.fromkeys(("photo", "mask"), datasets.Image()))
    rows = {"photo": [{"bytes": encoded(picture(3)), "path": None}], "mask": [{"bytes": b"", "path": None}]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


def test_one_of_two_image_columns_is_named(tmp_path):
    name = two_image_columns(tmp_path)
    with pytest.raises(ValueError, match=r"has 2 image columns \(photo, mask\) among photo, mask; name the one to use"):
        open_images(name, split="train")
    (image,) = ItemLoader(ItemStream(open_images(name, split="train", column="photo"), CROP), batch_size=1)
    assert torch.equal(bytes_of(image)[0], torch.from_numpy(picture(3)))


@pytest.mark.parametrize("column", ["label", "nothing"])
def test_a_column_without_images(tmp_path, column):
    with pytest.raises(ValueError, match=rf"has 1 image columns \(photo\) among label, photo; '{column}' is none"):
        open_images(write_counted(tmp_path, 1), split="train", column=column)


def test_a_split_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="has no split 'validation'; it has train"):
        open_images(write_counted(tmp_path, 1), split="validation")


def test_a_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        open_images(str(tmp_path / "nothing_here"), split="train")


@pytest.mark.parametrize(
    ("files", "message"),
    [([], "it is empty"), ([b"no", b"image"], "the first 2 rows of column 'photo' hold no readable image")],
)
def test_data_that_cannot_be_used_is_found_early(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        check_readable(open_images(write_shards(tmp_path, [files]), split="train"), CROP)


def test_a_corrupt_first_shard_is_found_early(tmp_path):
    source = open_images(write_counted(tmp_path, 2, 2), split="train")
    truncate(tmp_path / "data" / "train-00001-of-00002.parquet")
    check_readable(source, CROP)
    truncate(tmp_path / "data" / "train-00000-of-00002.parquet")
    with pytest.raises(ValueError, match="part 0 of 2 of the data set cannot be read"):
        check_readable(source, CROP)


def test_data_that_starts_with_an_unreadable_image_can_be_used(tmp_path):
    check_readable(open_images(write_shards(tmp_path, [[b"no", encoded(picture(0))]]), split="train"), CROP)
