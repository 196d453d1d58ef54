"""Opening data sets and folders of audio, and what is told about those that cannot be used."""

import importlib.util
import io
import tarfile

import datasets
import numpy as np
import pytest
import torch
from audio_files import (
    CORRUPT,
    RATE,
    clip,
    encoded,
    numbers_of,
    write_counted,
    write_files,
    write_rows,
    write_shards,
)

from vpvae_hf.data import AudioClip, AudioSegment, ItemLoader, ItemStream, check_readable, open_audio

SEGMENT = AudioSegment(length=50, sampling_rate=RATE, position="start")
CLIP = AudioClip(sampling_rate=RATE)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of its own for the `datasets` library."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def numbers_in(name: str, split: str = "train", **how) -> list[int]:
    return numbers_of(ItemLoader(ItemStream(open_audio(name, split=split, **how), SEGMENT), batch_size=4))


def files(*names: str) -> dict[str, bytes]:
    """Audio files of those names, numbered in their order."""
    return {name: encoded(clip(number)) for number, name in enumerate(names)}


def test_the_column_is_found_by_its_type(tmp_path):
    source = open_audio(write_counted(tmp_path, 2, 1), split="train")
    assert source.column == "sound"
    assert [set(row) for row in source.rows] == [{"sound"}] * 3


def test_without_streaming_the_audio_is_the_same(tmp_path):
    name = write_counted(tmp_path, 5, 3)
    sources = [open_audio(name, split="train", streaming=streaming) for streaming in (True, False)]
    streamed, prepared = (list(ItemLoader(ItemStream(source, SEGMENT), batch_size=8)) for source in sources)
    torch.testing.assert_close(prepared, streamed, rtol=0, atol=0)


def test_other_columns_are_kept_where_that_is_asked(tmp_path):
    rows = list(open_audio(write_counted(tmp_path, 2, 1), split="train", other_columns=True).rows)
    assert [row["label"] for row in rows] == [0, 1, 2]
    assert rows[2]["sound"]["bytes"] == encoded(clip(2))


def test_one_of_two_columns_is_named(tmp_path):
    sound = {"bytes": encoded(clip(3)), "path": None}
    features = {"speech": datasets.Audio(), "noise": datasets.Audio(), "photo": datasets.Image()}
    name = write_rows(tmp_path / "train.parquet", features, [{"speech": sound, "noise": None, "photo": None}])
    with pytest.raises(ValueError, match=r"has 2 audio columns \(speech, noise\) among speech, noise, photo; name the"):
        open_audio(name, split="train")
    with pytest.raises(ValueError, match="'photo' is none of them"):
        open_audio(name, split="train", column="photo")
    assert numbers_in(name, column="speech") == [3]


def test_a_flat_folder_is_the_split_train(tmp_path):
    """In the order of the names, without hidden and other files."""
    name = write_files(tmp_path, files("a.wav", "b.WAV", "b/c.wav", "d/e/f.wav"))
    write_files(tmp_path, {"README.md": b"#", "metadata.csv": b"", "._a.wav": b"", ".git/a.wav": b"", "z.txt": b""})
    source = open_audio(name, split="train", other_columns=True)
    assert source.column == "audio"
    assert [row["file_name"] for row in source.rows] == ["a.wav", "b/c.wav", "b.WAV", "d/e/f.wav"]
    assert numbers_in(name) == [0, 2, 1, 3]


def test_sub_folders_are_splits(tmp_path):
    name = write_files(tmp_path, files("train/a.wav", "train/s1/b.wav", "validation/a.wav", "test/s1/s2/a.wav"))
    assert [numbers_in(name, split) for split in ("train", "validation", "test")] == [[0, 1], [2], [3]]
    rows = open_audio(name, split="test", other_columns=True).rows
    assert [row["file_name"] for row in rows] == ["test/s1/s2/a.wav"]
    assert numbers_in(f"{name}/train/s1") == [1]


def test_a_split_that_lies_elsewhere_is_followed(tmp_path):
    write_files(tmp_path / "elsewhere", files("a.wav"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(tmp_path / "elsewhere")
    assert numbers_in(str(tmp_path / "data")) == [0]


def test_a_split_that_is_not_there(tmp_path):
    name = write_files(tmp_path, files("train/a.wav", "test/b.wav"))
    with pytest.raises(ValueError, match="has no split 'validation'; it has train, test"):
        open_audio(name, split="validation")


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
    assert numbers_in(name, "train[2:5]", streaming=False) == [2, 3, 4]
    assert numbers_in(name, "train[75%:]", streaming=False) == [6, 7]
    with pytest.raises(ValueError, match=r"a stream has no slices, got split 'train\[2:5\]'"):
        open_audio(name, split="train[2:5]")


@pytest.mark.parametrize(("count", "shards"), [(1, 1), (127, 1), (128, 2), (300, 4)])
def test_a_folder_has_shards_of_several_files(tmp_path, count, shards):
    name = write_files(tmp_path, {f"{number:03d}.wav": b"" for number in range(count)})
    source = open_audio(name, split="train", other_columns=True)
    assert source.rows.num_shards == shards
    assert [row["file_name"] for row in source.rows] == [f"{number:03d}.wav" for number in range(count)]


def test_a_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        open_audio(str(tmp_path / "nothing_here"), split="train")


@pytest.mark.skipif(importlib.util.find_spec("torchcodec") is not None, reason="torchcodec is installed")
@pytest.mark.parametrize("streaming", [True, False])
def test_files_that_take_torchcodec(tmp_path, streaming):
    """`datasets` opens archives itself, and without torchcodec it cannot."""
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        member = tarfile.TarInfo("0.wav")
        member.size = len(encoded(clip(0)))
        archive.addfile(member, io.BytesIO(encoded(clip(0))))
    with pytest.raises(ImportError, match=r"install 'torchcodec'. A data set of Parquet files needs no such library"):
        check_readable(open_audio(str(tmp_path), split="train", streaming=streaming), CLIP)


@pytest.mark.parametrize(
    ("sounds", "message"),
    [
        ([], "it is empty"),
        (
            [CORRUPT, None],
            r"the first 2 rows of column 'sound' hold no readable audio clip \(the first: 0.wav: Format not recognised",
        ),
        ([encoded(clip(0), 8000)], "0.wav has a sampling rate of 8000 Hz, wanted are 16000 Hz; allow resampling"),
        ([encoded(np.zeros((9, 2)))], "0.wav has 2 channels, wanted is one"),
    ],
)
@pytest.mark.parametrize("cut", [SEGMENT, CLIP])
def test_data_that_cannot_be_used_is_found_early(tmp_path, cut, sounds, message):
    with pytest.raises(ValueError, match=message):
        check_readable(open_audio(write_shards(tmp_path, [sounds]), split="train"), cut)


@pytest.mark.parametrize("cut", [SEGMENT, CLIP])
def test_data_that_starts_with_an_unreadable_clip_can_be_used(tmp_path, cut):
    check_readable(open_audio(write_shards(tmp_path, [[b"no", encoded(clip(0))]]), split="train"), cut)


def test_links_that_lead_back_are_not_followed_again(tmp_path):
    name = write_files(tmp_path / "folder", {"a.wav": encoded(clip(3))})
    (tmp_path / "folder" / "again").symlink_to(tmp_path / "folder")
    assert len(list(open_audio(name, split="train").rows)) == 1
