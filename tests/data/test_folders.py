"""Local files as data sets: what is read from a folder, its columns and splits, and what is reported about the rest."""

import gc
import io
import os
from pathlib import Path

import audio_files
import datasets
import image_shards
import numpy as np
import pytest
import soundfile
from audio_files import RATE, clip, encoded, write_files
from PIL import Image

from vpvae_hf.data import ImageCrop, ItemLoader, ItemStream, open_audio, open_images, read_audio
from vpvae_hf.data.folders import readable_suffixes

SUFFIX = {"image": ".png", "audio": ".wav"}


def files(modality, *names: str) -> dict[str, bytes]:
    """Files of those names, numbered in their order; each suffix is added."""
    return {name + SUFFIX[modality.KIND.split()[0]]: modality.file(number) for number, name in enumerate(names)}


def numbers(modality, name, split: str = "train", **how) -> list[int]:
    """Which files a split has, in order."""
    stream = ItemStream(modality.OPEN(name, split=split, **how), modality.whole())
    return modality.numbers_of(ItemLoader(stream, batch_size=4))


def rows_of(name, split: str = "train", **how) -> list[dict]:
    """The images of a split by their paths, with the other columns."""
    rows = open_images(name, split=split, other_columns=True, **how).rows
    return [{**row, "image": os.path.relpath(row["image"]["path"], name)} for row in rows]


def linked(folder: Path, links: dict[str, Path]) -> Path:
    for name, target in links.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)
    return folder


NAMES = [
    "train station",
    "test card",
    "training pictures/a",
    "a [1]",
    "b*",
    "ä ö",
    "c#1",
    "d%20",
    "e\nf",
    "-g",
    "x[2]/h",
]


def test_every_name_is_read(modality, tmp_path):
    folder = tmp_path / "my [1] * ?"
    name = write_files(folder, files(modality, *NAMES))
    assert sorted(numbers(modality, name)) == list(range(len(NAMES)))


def test_a_folder_by_any_name(modality, tmp_path, monkeypatch):
    write_files(tmp_path / "data", files(modality, "a", "b"))
    linked(tmp_path, {"link": tmp_path / "data"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("data", "./data", "data/", "~/data", "link", tmp_path / "data", Path("data"), "data/../data//"):
        assert numbers(modality, name) == [0, 1]


def test_links_are_followed_but_not_back(modality, tmp_path):
    write_files(tmp_path / "elsewhere", files(modality, "a"))
    linked(tmp_path / "elsewhere", {"again": tmp_path / "elsewhere"})
    data = linked(tmp_path / "data", dict.fromkeys(("train", "val", "test/x"), tmp_path / "elsewhere"))
    for split in ("train", "validation", "test"):
        assert numbers(modality, data, split) == [0]


def test_broken_links_are_unreadable_files(modality, tmp_path):
    name = write_files(tmp_path, files(modality, "a"))
    suffix = next(iter(files(modality, "a")))[-4:]
    linked(tmp_path, {f"b{suffix}": Path("/nowhere"), f"c{suffix}": tmp_path / f"c{suffix}"})
    source = modality.OPEN(name, split="train")
    loader = ItemLoader(ItemStream(source, modality.whole()), batch_size=1)
    assert modality.numbers_of(loader) == [0]
    assert loader.skipped == 2


# Suffix -> format of Pillow.
IMAGES = {"jpg": "JPEG", "JPEG": "JPEG", "jfif": "JPEG", "png": "PNG", "webp": "WEBP", "avif": "AVIF", "Tif": "TIFF"}
IMAGES |= {"tiff": "TIFF", "bmp": "BMP", "gif": "GIF", "ppm": "PPM", "tga": "TGA", "jp2": "JPEG2000", "mpo": "MPO"}
IMAGES |= {"ico": "ICO", "pcx": "PCX", "dds": "DDS", "sgi": "SGI", "qoi": "QOI"}


def test_every_format_that_pillow_reads(tmp_path):
    for suffix, name in IMAGES.items():
        Image.fromarray(image_shards.picture(1, 16, 16)).save(tmp_path / f"{suffix}.{suffix}", name)
    stream = ItemStream(open_images(tmp_path, split="train"), ImageCrop(size=16))
    loader = ItemLoader(stream, batch_size=1)
    assert len(list(loader)) == len(IMAGES)
    assert loader.skipped == 0


def test_every_format_that_libsndfile_reads(tmp_path):
    """Files of its formats, and only of those, by the suffixes that they commonly have."""
    formats = {"aif": "AIFF", "aiff": "AIFF", "aifc": "AIFF", "au": "AU", "snd": "AU", "caf": "CAF", "mp1": "MP3"}
    formats |= {"mp2": "MP3", "mp3": "MP3", "ogg": "OGG", "oga": "OGG", "opus": "OGG", "wave": "WAV", "bwf": "WAV"}
    formats |= {"sph": "NIST", "ircam": "IRCAM", "sf": "IRCAM", "iff": "SVX", "8svx": "SVX"}
    formats |= {each.lower(): each for each in soundfile.available_formats()}
    for suffix in readable_suffixes("audio"):
        content = io.BytesIO()
        rate = 8000 if suffix == ".wve" else RATE
        subtype = "OPUS" if suffix == ".opus" else None
        soundfile.write(content, clip(1, 4000), rate, format=formats[suffix[1:]], subtype=subtype)
        (tmp_path / f"a{suffix.upper()}").write_bytes(content.getvalue())
        assert len(read_audio(tmp_path / f"a{suffix.upper()}", sampling_rate=rate)) >= 4000
    assert len(list(open_audio(tmp_path, split="train").rows)) == len(readable_suffixes("audio"))


def test_other_files_do_no_harm_and_lost_ones_are_told(modality, tmp_path, caplog):
    other = {"image": "b.wav", "audio": "b.png"}[modality.KIND.split()[0]]
    harmless = ["a.txt", "a.json", "list.csv", "Thumbs.db", ".DS_Store", "._a.png", ".git/a.png", ".git/a.wav", other]
    name = write_files(tmp_path, files(modality, "a", "b") | dict.fromkeys(harmless, b"?"))
    assert numbers(modality, name) == [0, 1]
    assert not caplog.messages
    lost = ["c.MP4", "d.mkv", "e.webm", "f.heic", "f.cr2", "g.m4a", "h.aac", "i", "x.zip"]
    write_files(tmp_path, dict.fromkeys(lost, b"?"))
    for _ in range(2):  # and reported once
        assert numbers(modality, name) == [0, 1]
    (told,) = caplog.messages
    own = {"image": (".heic", ".cr2"), "audio": (".m4a", ".aac")}[modality.KIND.split()[0]]
    for part in ("1 .mp4", "1 .mkv", "1 .webm", *(f"1 {suffix}" for suffix in own), "1 without a suffix", "1 .zip"):
        assert part in told


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no file; name a folder of"),
        ([".a.png", ".a.wav"], "holds no file; name a folder of"),
        (["a.heic", "b.HEIC", "a.txt"], r"that can be read here, but only 2 \.heic; convert"),
        (["a.m4a", "metadata"], r"but only 1 \.m4a, 1 without a suffix; convert"),
        (["a", "b"], "but only 2 without a suffix"),
        (["a.mp4"], r"but only 1 \.mp4; convert (images to PNG or JPEG|audio files to WAV or FLAC), or"),
    ],
)
def test_folders_without_a_file_that_can_be_read(modality, names, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        modality.OPEN(write_files(tmp_path, dict.fromkeys(names, b"?")), split="train")


def test_the_other_kind_of_files(tmp_path):
    write_files(tmp_path / "sound", {"a.wav": b"?"})
    with pytest.raises(ValueError, match=r"holds no images that can be read here, but only 1 \.wav"):
        open_images(tmp_path / "sound", split="train")
    write_files(tmp_path / "photos", {"a.png": b"?"})
    with pytest.raises(ValueError, match=r"holds no audio files that can be read here, but only 1 \.png"):
        open_audio(tmp_path / "photos", split="train")


def test_folders_that_may_not_be_opened(modality, tmp_path, monkeypatch, caplog):
    name = write_files(tmp_path, files(modality, "a", "secret/b"))
    scandir = os.scandir

    def refuses(place):
        if os.fspath(place).endswith("secret"):
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuses)
    assert numbers(modality, name) == [0]
    assert "left out are the folders secret/, which may not be opened" in caplog.text
    with pytest.raises(PermissionError, match="secret"):
        modality.OPEN(f"{name}/secret", split="train")


def test_a_name_that_is_not_utf_8(modality, tmp_path, caplog):
    suffix = next(iter(files(modality, "a")))[-4:].encode()
    name = write_files(tmp_path / "data", files(modality, "a"))
    Path(os.fsdecode(os.fsencode(name) + b"/\xff" + suffix)).touch()
    assert numbers(modality, name) == [0]
    assert "whose names are not UTF-8" in caplog.text
    next((tmp_path / "data").glob("a.*")).unlink()
    with pytest.raises(ValueError, match="no file name is UTF-8"):
        modality.OPEN(name, split="train")


def test_a_few_files_of_data_beside_many(tmp_path, caplog):
    write_files(tmp_path, files(image_shards, "a", "b", "c") | {"train.zip": b"?"})
    datasets.Dataset.from_dict({"url": ["x"]}).to_parquet(tmp_path / "index.parquet")
    assert numbers(image_shards, tmp_path) == [0, 1, 2]
    assert "1 .zip" in caplog.text
    image_shards.write_shards(tmp_path / "data", [[image_shards.file(7)]])  # whose README shows three images
    assert numbers(image_shards, tmp_path, column="photo") == [7]


@pytest.mark.parametrize(
    "names",
    [
        ["c", "B", "a"],
        ["cat/1", "cat-2/1", "dog/3", "dog 2/1"],
        ["cat/x/1", "dog/3"],
        ["train/a/1", "train/b/1", "test/a/1"],
    ],
)
def test_rows_are_those_of_imagefolder(names, tmp_path):
    """On folders that it treats well: the same columns, in the same order."""
    write_files(tmp_path, files(image_shards, *names))
    for split in datasets.get_dataset_split_names("imagefolder", data_dir=str(tmp_path)):
        expected = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split=split, streaming=True)
        rows = open_images(tmp_path, split=split, other_columns=True).rows
        undecoded = expected.cast_column("image", datasets.Image(decode=False))
        assert list(rows) == list(undecoded)
        assert rows.features == undecoded.features


CSV = "file_name,text,n\nsub/c.png,hello,1\na.png,,2\nmissing.png,x,3\n"
JSONL = '{"t": 1, "file_name": "a.png", "boxes": [[1, 2]]}\n{"t": 2, "file_name": "sub/c.png", "boxes": null}\n'


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imagefolder leaves a file open
@pytest.mark.parametrize(("table", "content"), [("metadata.csv", CSV), ("metadata.jsonl", JSONL)])
def test_tables_beside_images_are_those_of_imagefolder(table, content, tmp_path, caplog):
    write_files(tmp_path, files(image_shards, "a", "b", "sub/c") | {table: content.encode()})
    expected = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split="train", streaming=True)
    rows = open_images(tmp_path, split="train", other_columns=True).rows
    undecoded = expected.cast_column("image", datasets.Image(decode=False))
    assert list(rows) == list(undecoded)
    assert rows.features == undecoded.features
    assert f"left out are 1 images that {table} does not list" in caplog.text
    del expected, undecoded
    gc.collect()  # here, where the file that is left open is ignored


def test_tables_keep_their_classes_and_splits(tmp_path):
    features = datasets.Features({"file_name": datasets.Value("string"), "kind": datasets.ClassLabel(names=["x", "y"])})
    write_files(tmp_path, files(image_shards, "train/a", "train/b", "test/c"))
    for split, names in {"train": ["b.png", "a.png"], "test": ["c.png"]}.items():
        table = datasets.Dataset.from_dict({"file_name": names, "kind": [1] * len(names)}, features=features)
        table.to_parquet(tmp_path / split / "metadata.parquet")
    assert rows_of(tmp_path) == [{"image": "train/b.png", "kind": 1}, {"image": "train/a.png", "kind": 1}]
    assert rows_of(tmp_path, "test") == [{"image": "test/c.png", "kind": 1}]
    assert open_images(tmp_path, split="test", other_columns=True).rows.features["kind"] == features["kind"]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"metadata.csv": "file_name,t\n../a.png,1\n"}, r"names a file '\.\./a\.png'; name files that lie below"),
        ({"metadata.csv": "file_name,t\n/a.png,1\n"}, "names a file '/a.png'; name files that lie below"),
        ({"metadata.csv": "file_name,t\n,1\n"}, r"names no file in row 1 \(None\); name one in each row"),
        ({"metadata.jsonl": '{"file_name": 5}\n'}, r"names no file in row 1 \(5\)"),
        ({"metadata.csv": "file_name,image\na.png,1\n"}, "a table has a column 'image' next to file_name; rename it"),
        ({"metadata.csv": ""}, "metadata.csv cannot be read as a table: No columns"),
        (
            {"metadata.csv": "file_name,t\na.png,1\n", "s/metadata.csv": "file_name,t\nb.png,x\n"},
            r"have columns of different types: t \(int64 and (large_)?string\); make them alike",
        ),
    ],
)
def test_tables_that_cannot_be_used(tables, message, tmp_path):
    contents = {name: text.encode() for name, text in tables.items()}
    write_files(tmp_path, files(image_shards, "a", "s/b") | contents)
    with pytest.raises(ValueError, match=message):
        open_images(tmp_path, split="train")


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"metadata.csv": "file_name,t\na.png,x\n", "s/metadata.csv": "file_name,t\nb.png,\n"}, ["x", None]),
        ({"metadata.csv": "file_name,t\na.png,x\n", "s/metadata.jsonl": '{"file_name":"b.png","t":"y"}'}, ["x", "y"]),
        ({"metadata.csv": "file_name,t\na.png,1\n", "s/metadata.jsonl": '{"file_name":"b.png","t":null}'}, [1, None]),
        ({"metadata.csv": "file_name,t\na.png,1\n", "s/metadata.csv": "file_name\nb.png\n"}, [1, None]),
        ({"metadata.csv": "file_name,t\na.png,1\n", "s/metadata.csv": "file_name,t\nb.png,1.5\n"}, [1, 1.5]),
        ({"metadata.csv": "file_name,t\ns\\b.png,1\n{here}/a.png,2\n"}, [1, 2]),
    ],
)
def test_tables_that_differ_in_what_is_guessed(tables, expected, tmp_path):
    contents = {name: text.replace("{here}", str(tmp_path)).encode() for name, text in tables.items()}
    write_files(tmp_path, files(image_shards, "a", "s/b") | contents)
    assert [row["t"] for row in rows_of(tmp_path)] == expected


def test_tables_without_a_row(tmp_path, caplog):
    write_files(
        tmp_path, files(image_shards, "a", "b") | {"metadata.csv": b"file_name,t\n", "list.csv": b"file_name\n"}
    )
    assert numbers(image_shards, tmp_path) == [0, 1]
    assert "metadata.csv has no row, so it is not read" in caplog.text
    with pytest.raises(ValueError, match="has a column file_name, but no row; add one for each file"):
        open_images(tmp_path / "list.csv", split="train")


def test_tables_that_name_no_files(tmp_path, caplog):
    write_files(tmp_path / "photos", files(image_shards, "a", "b") | {"metadata.csv": b"A1|hello, you|x\n"})
    assert numbers(image_shards, tmp_path / "photos") == [0, 1]
    assert "metadata.csv has no column file_name, so it is not read" in caplog.text
    write_files(tmp_path / "sound", files(audio_files, "a") | {"metadata.csv": b"", "s/metadata.csv": b"A1|a,b,c|x"})
    assert numbers(audio_files, tmp_path / "sound") == [0]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_list_of_files(modality, ending, tmp_path):
    names = list(files(modality, "a", "b", "c"))
    write_files(tmp_path, files(modality, "a", "b", "c"))
    listed = datasets.Dataset.from_dict({"file_name": [names[2], str(tmp_path / names[0])], "text": ["x", "y"]})
    file = tmp_path / f"list.{ending}"
    listed.to_csv(file) if ending == "csv" else listed.to_json(file)
    assert numbers(modality, file) == [2, 0]
    source = modality.OPEN(file, split="train", other_columns=True)
    assert [row["text"] for row in source.rows] == ["x", "y"]
    (tmp_path / "other.csv").write_text("path\nx\n")
    with pytest.raises(ValueError, match="has no column file_name"):
        modality.OPEN(tmp_path / "other.csv", split="train")


def test_one_file(modality, tmp_path):
    name = write_files(tmp_path, files(modality, "a", "b"))
    one = f"{name}/{list(files(modality, 'a', 'b'))[1]}"
    assert numbers(modality, one) == [1]
    with pytest.raises(ValueError, match="is a local file, which has no config or revision; leave them out"):
        modality.OPEN(one, split="train", revision="main")


@pytest.mark.parametrize("name", ["a.heic", "a.m4a", "a", "a.txt", "a.json"])
def test_one_file_that_cannot_be_read(modality, name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"is no data set of .* with the suffix .* is not read. Name a folder, a file"):
        modality.OPEN(tmp_path / name, split="train")


def test_a_flat_folder_of_audio(tmp_path):
    """It is in the order of the names, and has their column."""
    name = write_files(tmp_path, files(audio_files, "a", "b/c", "b", "d/e/f") | {"b.WAV": encoded(clip(9))})
    rows = list(open_audio(name, split="train", other_columns=True).rows)
    assert [row["file_name"] for row in rows] == ["a.wav", "b/c.wav", "b.WAV", "b.wav", "d/e/f.wav"]


def test_sub_folders_are_splits(modality, tmp_path):
    name = write_files(tmp_path, files(modality, "train/a", "train/s1/b", "validation/a", "test/s1/s2/a"))
    assert [numbers(modality, name, split) for split in ("train", "validation", "test")] == [[0, 1], [2], [3]]
    assert numbers(modality, f"{name}/train/s1") == [1]
    assert sorted(numbers(modality, name, "train+test")) == [0, 1, 3]


@pytest.mark.parametrize(
    "names", [("training", "val", "eval"), ("train", "dev", "testing"), ("train2017", "val2017", "test1")]
)
@pytest.mark.parametrize("top", ["", "unpacked/images/"])
def test_other_names_of_splits(modality, top, names, tmp_path):
    name = write_files(tmp_path, files(modality, *(f"{top}{each}/a" for each in names)))
    assert [numbers(modality, name, split) for split in ("train", "validation", "test")] == [[0], [1], [2]]


@pytest.mark.parametrize("names", [("a/train/1", "b/test/1"), ("Train/1", "Test/1"), ("train-clean/1", "dev-clean/1")])
def test_folders_that_only_look_like_splits(modality, names, tmp_path, caplog):
    name = write_files(tmp_path, files(modality, *names))
    assert len(numbers(modality, name)) == 2
    assert "are not used as splits" in caplog.text


def test_files_outside_of_the_splits_are_not_left_out_in_silence(modality, tmp_path):
    name = write_files(tmp_path, files(modality, "train/a", "bus/b"))
    message = (
        r"(images|audio files) both in train and outside, such as bus/b\.\w+; move them to train, validation, test or"
    )
    with pytest.raises(ValueError, match=message):
        modality.OPEN(name, split="train")


@pytest.mark.parametrize("part", [{"config": "clean"}, {"revision": "main"}])
def test_a_folder_has_no_config_or_revision(modality, part, tmp_path):
    message = r"is a folder of (images|audio files), which has no config or revision; leave them out"
    with pytest.raises(ValueError, match=message):
        modality.OPEN(write_files(tmp_path, files(modality, "a")), split="train", **part)


def test_a_slice_of_a_folder(modality, tmp_path):
    name = write_files(tmp_path, files(modality, *(str(number) for number in range(8))))
    assert numbers(modality, name, "train[2:5]", streaming=False) == [2, 3, 4]
    assert numbers(modality, name, "train[75%:]", streaming=False) == [6, 7]


@pytest.mark.parametrize(("count", "shards"), [(1, 1), (127, 1), (128, 2), (300, 4)])
def test_a_folder_has_shards_of_several_files(modality, tmp_path, count, shards):
    name = write_files(tmp_path, dict.fromkeys(files(modality, *(f"{number:03d}" for number in range(count))), b""))
    rows = modality.OPEN(name, split="train").rows
    assert rows.num_shards == shards
    (column,) = rows.features
    assert [Path(row[column]["path"]).stem for row in rows] == [f"{number:03d}" for number in range(count)]


def parts(modality, name, share: float) -> tuple[list[int], list[int]]:
    return tuple(numbers(modality, name, split, validation_share=share) for split in ("train", "validation"))


def test_a_share_of_a_folder_without_splits_is_set_aside(modality, tmp_path, caplog):
    names = [str(number) for number in range(20)]
    name = write_files(tmp_path, files(modality, *names[:12]))
    train, validation = parts(modality, name, 0.3)
    assert sorted(train + validation) == list(range(12))
    assert f"has no split validation: {len(validation)} of its 12" in caplog.text
    assert len(caplog.messages) == 1
    assert set(parts(modality, name, 0.1)[1]) <= set(validation)
    write_files(tmp_path, files(modality, *names))
    assert set(parts(modality, name, 0.3)[1]) & set(range(12)) == set(validation)
    assert len(numbers(modality, name)) == 20
    with pytest.raises(ValueError, match="has no split 'validation'; it has train"):
        modality.OPEN(name, split="validation")


@pytest.mark.parametrize(("share", "validated"), [(1e-9, 1), (0.999, 2)])
def test_neither_part_is_empty(modality, share, validated, tmp_path):
    train, validation = parts(modality, write_files(tmp_path, files(modality, *"abc")), share)
    assert (len(train), len(validation)) == (3 - validated, validated)


def test_one_file_is_both(modality, tmp_path, caplog):
    assert parts(modality, write_files(tmp_path, files(modality, "a")), 0.05) == ([0], [0])
    assert "its only file is both training and the validation split" in caplog.text


def test_splits_that_are_there_are_kept(modality, tmp_path):
    name = write_files(tmp_path, files(modality, "train/a", "train/b", "train/c", "test/d"))
    assert numbers(modality, name, validation_share=0.5) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"no split 'validaton'; it has train, test\. Name one"):
        modality.OPEN(name, split="validaton", validation_share=0.5)
    with pytest.raises(ValueError, match=r"no split 'tets'; it has train, test \(did you mean 'test'\?\)"):
        modality.OPEN(name, split="tets")


@pytest.mark.parametrize("share", [-0.1, 1, float("nan")])
def test_a_share_that_leaves_nothing(share):
    with pytest.raises(ValueError, match="validation_share must be at least 0 and less than 1, got"):
        open_images("photos", split="train", validation_share=share)


def test_about_that_share_is_set_aside(tmp_path):
    (tmp_path / "list.csv").write_text("\n".join(["file_name", *(f"IMG_{number:04d}.jpg" for number in range(2000))]))
    count = len(list(open_images(tmp_path / "list.csv", split="validation", validation_share=0.1).rows))
    # Of 2000 draws with that chance, within four standard deviations.
    assert abs(count - 200) < 4 * np.sqrt(2000 * 0.1 * 0.9)
