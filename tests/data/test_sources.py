"""Opening data sets of images and of audio, joined splits, and what is reported about unusable ones."""

import importlib.util
import io
import itertools
import json
import tarfile
from collections import Counter
from pathlib import Path

import audio_files
import datasets
import image_shards
import numpy as np
import pyarrow.parquet
import pytest
from audio_files import RATE, clip, encoded, write_rows

from vpvae_hf.data import AudioClip, ImageCrop, ItemLoader, ItemStream, check_readable, open_audio, open_images

CLIP = AudioClip(sampling_rate=RATE)


def loader_of(modality, source, batch_size: int = 4, **settings) -> ItemLoader:
    return ItemLoader(ItemStream(source, modality.whole(), **settings), batch_size=batch_size)


def test_the_column_is_found_by_its_type_and_others_are_kept_if_asked(modality, tmp_path):
    name = modality.write_counted(tmp_path, 2, 1)
    source = modality.OPEN(name, split="train")
    assert source.column == modality.COLUMN
    assert [set(row) for row in source.rows] == [{modality.COLUMN}] * 3
    rows = list(modality.OPEN(name, split="train", other_columns=True).rows)
    assert [row["label"] for row in rows] == [0, 1, 2]
    assert rows[2][modality.COLUMN]["bytes"] == modality.file(2)


def test_without_streaming_ranks_and_workers_share_the_items(modality, tmp_path):
    source = modality.OPEN(modality.write_counted(tmp_path, 9), split="train", streaming=False)
    streams = [ItemStream(source, modality.whole(), rank=rank, world_size=2, shuffle_buffer=3) for rank in range(2)]
    numbers = [modality.numbers_of(ItemLoader(stream, batch_size=2, workers=2)) for stream in streams]
    assert sorted(itertools.chain(*numbers)) == list(range(9))
    assert all(numbers)


def test_a_slice_is_read_if_nothing_is_streamed(modality, tmp_path):
    name = modality.write_counted(tmp_path, 5, 3)
    source = modality.OPEN(name, split="train[2:6]", streaming=False)
    assert modality.numbers_of(loader_of(modality, source)) == [2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"a stream has no slices, got split 'train\[2:6\]'; name a whole split"):
        modality.OPEN(name, split="train[2:6]")


def test_length_without_reading_rows(modality, tmp_path):
    name = modality.write_counted(tmp_path, 5, 3)
    assert modality.OPEN(name, split="train").length is None
    assert modality.OPEN(name, split="train", streaming=False).length == 8
    told = {"config_name": "default", "splits": [{"name": "train", "num_bytes": 1, "num_examples": 8}]}
    (tmp_path / "README.md").write_text(f"---\ndataset_info: {json.dumps(told)}\n---\n")
    assert modality.OPEN(name, split="train").length == 8
    assert modality.OPEN(name, split="train+train").length == 16


def test_no_column_of_the_type(modality, tmp_path):
    message = rf"has 1 (image|audio) columns \({modality.COLUMN}\) among label, {modality.COLUMN}; 'label' is none"
    with pytest.raises(ValueError, match=message):
        modality.OPEN(modality.write_counted(tmp_path / "counted", 1), split="train", column="label")
    (tmp_path / "text").mkdir()
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "text" / "train.parquet")
    with pytest.raises(ValueError, match=r"has 0 (image|audio) columns \(none\) among text; name the one to use"):
        modality.OPEN(str(tmp_path / "text"), split="train")


@pytest.mark.parametrize(("modality", "feature"), [(image_shards, datasets.Image()), (audio_files, datasets.Audio())])
def test_one_of_two_columns_is_named(modality, feature, tmp_path):
    row = {"one": {"bytes": modality.file(3), "path": None}, "other": {"bytes": b"", "path": None}}
    name = audio_files.write_rows(tmp_path / "train-00000-of-00001.parquet", dict.fromkeys(row, feature), [row])
    with pytest.raises(ValueError, match=r"has 2 \w+ columns \(one, other\) among one, other; name the one to use"):
        modality.OPEN(name, split="train")
    assert modality.numbers_of(loader_of(modality, modality.OPEN(name, split="train", column="one"))) == [3]


def test_a_split_that_is_not_there(modality, tmp_path):
    modality.write_shards(tmp_path, [[modality.file(0)]])
    name = modality.write_shards(tmp_path, [[modality.file(1)]], "test")
    with pytest.raises(
        ValueError, match=r"has no split 'validation'; it has train, test\. Name one of them with --split"
    ):
        modality.OPEN(name, split="train+validation")
    assert modality.numbers_of(loader_of(modality, modality.OPEN(name, split="test"))) == [1]


@pytest.mark.parametrize("name", ["./phots", "phots/", "{here}/phots", "photos/b.jpg", "~/phots", "a/b/c", Path("a/b")])
def test_a_path_that_is_not_there(modality, name, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    name = name.format(here=tmp_path) if isinstance(name, str) else name
    hint = rf"{name}; did you mean .*photos" if "p" in str(name) else str(name)
    with pytest.raises(FileNotFoundError, match=f"there is no file or folder {hint}"):
        modality.OPEN(name, split="train")


@pytest.mark.parametrize(
    ("name", "message"),
    [("photos/*.jpg", "name a folder or one file, not a pattern"), ("https://a.b/c.zip", "is an address; download it")],
)
def test_what_is_no_path(modality, name, message):
    with pytest.raises(FileNotFoundError, match=message):
        modality.OPEN(name, split="train")


def test_a_name_that_the_hub_does_not_have_may_mean_a_folder(modality, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "photos").mkdir()
    with pytest.raises(
        ConnectionError, match=r"Couldn't reach 'phots' on the Hub.* Or did you mean photos, which is on"
    ):
        modality.OPEN("phots", split="train")


def test_one_file_of_data_is_a_data_set(modality, tmp_path):
    folder = tmp_path / "[1] *"
    modality.write_counted(folder, 3)
    (file,) = folder.iterdir()
    for streaming in (True, False):
        source = modality.OPEN(file, split="train", streaming=streaming)
        assert modality.numbers_of(loader_of(modality, source)) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"takes \*, \? and \[ for patterns; rename it"):
        modality.OPEN(folder, split="train")


def test_an_archive_of_images(tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        member = tarfile.TarInfo("0.png")
        member.size = len(image_shards.file(0))
        archive.addfile(member, io.BytesIO(image_shards.file(0)))
    assert image_shards.numbers_of(image_shards.loader_of(tmp_path / "images.tar")) == [0]


@pytest.mark.parametrize("place", ["x.zip", ""])
def test_packed_files(modality, place, tmp_path):
    (tmp_path / "x.zip").touch()
    with pytest.raises(ValueError, match="is packed; unpack it" if place else r"only 1 \.zip; unpack them"):
        modality.OPEN(tmp_path / place, split="train")


@pytest.mark.parametrize(
    "kind", [pyarrow.binary(), pyarrow.large_string(), pyarrow.struct({"path": "string", "bytes": "binary"})], ids=str
)
@pytest.mark.parametrize("streaming", [True, False])
def test_columns_as_other_programs_write_them(modality, kind, streaming, tmp_path):
    (tmp_path / "1").write_bytes(modality.file(1))
    if pyarrow.types.is_struct(kind):
        column, values = None, [{"bytes": modality.file(0), "path": None}, {"path": "1"}]
    elif kind == pyarrow.binary():
        column, values = "content", [modality.file(0), modality.file(1)]
    else:
        (tmp_path / "0").write_bytes(modality.file(0))
        column, values = "content", ["0", (tmp_path / "1").as_uri()]
    there = column or modality.KIND.split()[0]
    table = pyarrow.table({"number": [0, 1, 2], there: pyarrow.array([*values, None], kind)})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    source = modality.OPEN(tmp_path / "train.parquet", split="train", column=column, streaming=streaming)
    assert modality.numbers_of(loader_of(modality, source)) == [0, 1]
    with pytest.raises(ValueError, match=r"'number' is none of them\. A column that is named may also hold the files'"):
        modality.OPEN(tmp_path / "train.parquet", split="train", column="number")


def test_splits_without_a_row(modality, tmp_path):
    name = audio_files.write_files(tmp_path, {"a.png": b"?", "a.wav": b"?"})
    with pytest.raises(ValueError, match=r"cannot be used: its split 'train\[:0\]' is empty"):
        modality.OPEN(name, split="train[:0]", streaming=False)
    with pytest.raises(ValueError, match='split must be the name of one, such as "train", got None'):
        modality.OPEN(name, split=None)


def test_what_save_to_disk_wrote(modality, tmp_path):
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=r"was written by save_to_disk, .* write a Parquet file for each split"):
        modality.OPEN(tmp_path, split="train")


def test_another_kind_of_audio_is_found_early(tmp_path):
    source = open_audio(audio_files.write_shards(tmp_path, [[None, encoded(np.zeros((9, 2)))]]), split="train")
    for transform in (audio_files.whole(), CLIP):
        with pytest.raises(ValueError, match=r"1\.wav has 2 channels, not one"):
            check_readable(source, transform)


@pytest.mark.skipif(importlib.util.find_spec("torchcodec") is not None, reason="torchcodec is installed")
@pytest.mark.parametrize("streaming", [True, False])
def test_files_that_need_torchcodec(tmp_path, streaming):
    """`datasets` opens archives itself, and without torchcodec it cannot."""
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        member = tarfile.TarInfo("0.wav")
        member.size = len(encoded(clip(0)))
        archive.addfile(member, io.BytesIO(encoded(clip(0))))
    with pytest.raises(ImportError, match=r"install 'torchcodec'. A data set of Parquet files needs no such library"):
        check_readable(open_audio(str(tmp_path), split="train", streaming=streaming), CLIP)


@pytest.fixture
def two_splits(modality, tmp_path):
    """Items 0..8 in the split train, of three shards, and 9..11 in test, of two."""
    for split, shards in (("train", ((0, 4), (4, 7), (7, 9))), ("test", ((9, 11), (11, 12)))):
        modality.write_shards(tmp_path, [[modality.file(number) for number in range(*each)] for each in shards], split)
    return str(tmp_path)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_all_items_of_joined_splits(modality, two_splits, ranks, streaming):
    source = modality.OPEN(two_splits, split="train+test", streaming=streaming)
    loaders = [loader_of(modality, source, shuffle_buffer=2, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert Counter(number for loader in loaders for number in modality.numbers_of(loader)) == Counter(range(12))


def test_shards_of_joined_splits_are_mixed(modality, two_splits):
    """In a shuffled pass items of the second split come before the last ones of the first."""
    source = modality.OPEN(two_splits, split="train+test")
    orders = [modality.numbers_of(loader_of(modality, source, shuffle_buffer=2, seed=seed)) for seed in range(8)]
    assert any(min(map(order.index, (9, 10, 11))) < max(map(order.index, range(9))) for order in orders)
    rows = list(modality.OPEN(two_splits, split="train+test", other_columns=True).rows)
    assert [row["label"] for row in rows] == [*range(9), *range(3)]


def test_joined_splits_resume(modality, two_splits):
    source = modality.OPEN(two_splits, split="train+test")
    first, second = (loader_of(modality, source, 1, shuffle_buffer=2) for _ in range(2))
    whole = modality.numbers_of(first)
    batches = iter(first)
    seen = modality.numbers_of(itertools.islice(batches, 7))
    second.load_state_dict(first.state_dict())
    batches.close()
    assert seen + modality.numbers_of(second) == whole


def test_a_column_of_addresses_is_told(tmp_path, caplog):
    rows = [{"url": "http://127.0.0.1:9/nothing.png"}]
    name = write_rows(tmp_path / "urls" / "train.parquet", {"url": datasets.Value("string")}, rows)
    source = open_images(name, split="train", column="url")
    with pytest.raises(ValueError, match="the first 1 rows of column 'url' hold no readable image"):
        check_readable(source, ImageCrop(size=8))
    assert f"column 'url' of {name} holds addresses" in caplog.text
    assert "img2dataset" in caplog.text
