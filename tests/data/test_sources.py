"""Opening data sets of images and of audio, folders of audio, joined splits, and what is told about unusable ones."""

import importlib.util
import io
import itertools
import tarfile
from collections import Counter

import audio_files
import datasets
import image_shards
import numpy as np
import pytest
from audio_files import RATE, clip, encoded, write_files

from vpvae_hf.data import AudioClip, ItemLoader, ItemStream, check_readable, open_audio

CLIP = AudioClip(sampling_rate=RATE)


def loader_of(modality, source, batch_size: int = 4, **settings) -> ItemLoader:
    return ItemLoader(ItemStream(source, modality.whole(), **settings), batch_size=batch_size)


def clips_in(name: str, split: str = "train", **how) -> list[int]:
    return audio_files.numbers_of(loader_of(audio_files, open_audio(name, split=split, **how)))


def files(*names: str) -> dict[str, bytes]:
    """Audio files of those names, numbered in their order."""
    return {name: encoded(clip(number)) for number, name in enumerate(names)}


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
    with pytest.raises(ValueError, match="has no split 'validation'; it has train, test"):
        modality.OPEN(name, split="train+validation")
    assert modality.numbers_of(loader_of(modality, modality.OPEN(name, split="test"))) == [1]


def test_a_folder_that_is_not_there(modality, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        modality.OPEN(str(tmp_path / "nothing_here"), split="train")


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


def test_a_folder_of_image_files(tmp_path):
    for number in range(11):
        (tmp_path / f"{number}.png").write_bytes(image_shards.file(number))
    loader = image_shards.loader_of(str(tmp_path), batch_size=3, shuffle_buffer=4)
    assert sorted(image_shards.numbers_of(loader)) == list(range(11))


def test_a_flat_folder_is_the_split_train(tmp_path):
    """In the order of the names, without hidden and other files."""
    name = write_files(tmp_path, files("a.wav", "b.WAV", "b/c.wav", "d/e/f.wav"))
    write_files(tmp_path, {"README.md": b"#", "metadata.csv": b"", "._a.wav": b"", ".git/a.wav": b"", "z.txt": b""})
    source = open_audio(name, split="train", other_columns=True)
    assert source.column == "audio"
    assert [row["file_name"] for row in source.rows] == ["a.wav", "b/c.wav", "b.WAV", "d/e/f.wav"]
    assert clips_in(name) == [0, 2, 1, 3]


def test_sub_folders_are_splits(tmp_path):
    name = write_files(tmp_path, files("train/a.wav", "train/s1/b.wav", "validation/a.wav", "test/s1/s2/a.wav"))
    assert [clips_in(name, split) for split in ("train", "validation", "test")] == [[0, 1], [2], [3]]
    rows = open_audio(name, split="test", other_columns=True).rows
    assert [row["file_name"] for row in rows] == ["test/s1/s2/a.wav"]
    assert clips_in(f"{name}/train/s1") == [1]
    assert sorted(clips_in(name, "train+test")) == [0, 1, 3]


def test_links_are_followed_but_not_back(tmp_path):
    write_files(tmp_path / "elsewhere", files("a.wav"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    assert clips_in(str(tmp_path / "data")) == [0]


def test_files_outside_of_the_splits_are_not_left_out_in_silence(tmp_path):
    name = write_files(tmp_path, files("train/a.wav", "dev/b.wav"))
    message = r"has audio files both in train and outside, such as dev/b.wav; move them to train, validation, test or"
    with pytest.raises(ValueError, match=message):
        open_audio(name, split="train")


@pytest.mark.parametrize("part", [{"config": "clean"}, {"revision": "main"}])
def test_a_folder_has_no_config_or_revision(tmp_path, part):
    with pytest.raises(ValueError, match="is a folder of audio files, which has no config or revision; leave them out"):
        open_audio(write_files(tmp_path, files("a.wav")), split="train", **part)


def test_a_slice_of_a_folder(tmp_path):
    name = write_files(tmp_path, files(*(f"{number}.wav" for number in range(8))))
    assert clips_in(name, "train[2:5]", streaming=False) == [2, 3, 4]
    assert clips_in(name, "train[75%:]", streaming=False) == [6, 7]


@pytest.mark.parametrize(("count", "shards"), [(1, 1), (127, 1), (128, 2), (300, 4)])
def test_a_folder_has_shards_of_several_files(tmp_path, count, shards):
    name = write_files(tmp_path, {f"{number:03d}.wav": b"" for number in range(count)})
    source = open_audio(name, split="train", other_columns=True)
    assert source.rows.num_shards == shards
    assert [row["file_name"] for row in source.rows] == [f"{number:03d}.wav" for number in range(count)]


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
