"""Codes for batches of `datasets` and Ray Data, which are those that `vpvae tokenize` writes."""

import io
import pickle
from pathlib import Path

import audio_files
import datasets
import image_shards
import numpy as np
import pytest
from PIL import Image

from tiny import tiny_vae
from vpvae_hf import BatchTokenizer, unreadable
from vpvae_hf.modalities import batch_tokenizer


@pytest.fixture(autouse=True)
def fresh_process():
    """As if in a new process: no tokenizer is loaded, and no warning was logged."""
    batch_tokenizer._worker.cache_clear()
    unreadable._warn_once.cache_clear()


def undecoded(data: str, column: str, kind, **how):
    return datasets.load_dataset(data, split="train", **how).cast_column(column, kind)


@pytest.mark.parametrize("how", [{"streaming": True}, {"num_proc": 2}])
def test_a_map_of_datasets_gives_the_codes_of_vpvae_tokenize(case, expected, listed, how):
    tokenizer, data, _, column, kind = case
    rows = undecoded(data, column, kind, streaming="streaming" in how)
    how = {"batched": True, "batch_size": 4, "remove_columns": [column]} | ({} if "streaming" in how else how)
    mapped = list(rows.map(BatchTokenizer(tokenizer, column, batch_size=2), **how))
    assert listed(mapped) == expected
    assert column not in mapped[0]


def test_codes_are_of_the_smallest_type_and_unreadable_files_are_told(case, expected, caplog):
    tokenizer, data, _, column, kind = case
    batch = undecoded(data, column, kind).with_format("numpy")[:]
    given = BatchTokenizer(tokenizer, column, keep_column=True)(batch)
    assert given["label"].tolist() == [row[0] for row in expected]
    assert 1 not in given["label"]
    assert len(given[column]) == len(given["label"])
    assert all(each.dtype == np.uint16 for each in given["codes"])
    assert isinstance(given["codes"], np.ndarray) == (column == "photo")
    (told,) = caplog.messages
    assert told.startswith(f"skipped 1 unreadable {'images' if column == 'photo' else 'clips'} of column '{column}'")


def test_it_is_sent_without_weights_and_loaded_once(images, monkeypatch):
    tokenizer = images[0]
    loaded, real = [], batch_tokenizer.load_for_tokenizing
    monkeypatch.setattr(batch_tokenizer, "load_for_tokenizing", lambda *args: loaded.append(args) or real(*args))
    function = BatchTokenizer(tokenizer, "photo", shortest_side=18)
    assert not loaded
    assert len(pickle.dumps(function)) < 1000
    batch = {"photo": [image_shards.file(0)]}
    given = [pickle.loads(pickle.dumps(function))(dict(batch))["codes"] for _ in range(2)]
    assert len(loaded) == 1
    assert np.array_equal(*given)
    config = Path(tokenizer, "config.json")
    config.write_text(config.read_text() + "\n")
    BatchTokenizer(tokenizer, "photo", shortest_side=18)(dict(batch))  # of a folder that has been written since
    assert len(loaded) == 2


def test_every_form_of_an_image(images, tmp_path):
    array = np.random.default_rng(3).integers(256, size=(20, 30, 3), dtype=np.uint8)
    content = image_shards.encoded(array)
    (tmp_path / "a.png").write_bytes(content)
    path = str(tmp_path / "a.png")
    forms = [
        content, path, {"bytes": content, "path": None}, {"path": path}, array, Image.open(io.BytesIO(content)),
        tmp_path / "a.png", array.transpose(2, 0, 1), None, Image.open(io.BytesIO(content[:900])),
        np.full((20, 30, 3), 2.0), {"bytes": None, "path": "missing.png"}, np.float32("nan"),
    ]  # fmt: skip
    given = BatchTokenizer(images[0], "photo")({"photo": forms, "number": list(range(13))})
    assert given["number"] == list(range(8))
    assert (given["codes"] == given["codes"][0]).all()
    nothing = BatchTokenizer(images[0], "photo")({"photo": [None], "number": [1]})
    assert (nothing["codes"].shape, nothing["codes"].dtype, nothing["number"]) == ((0, 8, 8), np.uint16, [])


def test_every_form_of_audio(clips):
    audio = (np.random.default_rng(3).standard_normal(70) * 3000).astype(np.int16)
    content = audio_files.encoded(audio, subtype="PCM_16")
    array = (audio / (1 << 15)).astype(np.float32)
    forms = [content, audio, array, array.tolist(), array.astype(float), {"array": array, "sampling_rate": 16000}]
    given = BatchTokenizer(clips[0], "sound")({"sound": forms})
    assert all(np.array_equal(each, given["codes"][0]) for each in given["codes"])
    assert given["num_samples"].tolist() == [70] * 6
    stereo = {"array": np.stack([array, array]), "sampling_rate": 8000}
    with pytest.raises(ValueError, match="a sampling rate of 8000 Hz, not 16000 Hz and 2 channels"):
        BatchTokenizer(clips[0], "sound")({"sound": [stereo]})
    converted = BatchTokenizer(clips[0], "sound", resample=True, downmix=True)({"sound": [stereo]})
    assert converted["num_samples"].tolist() == [140]


@pytest.mark.parametrize(
    ("settings", "batch", "error", "message"),
    [
        ({}, {"picture": []}, ValueError, "no column 'photo'; it has picture"),
        ({}, {"photo": [], "codes": []}, ValueError, 'has a column "codes" already'),
        ({}, {"photo": [1]}, TypeError, "int is no image; give the bytes of a file"),
        ({}, {"photo": [np.zeros((8, 8, 3), int)]}, TypeError, "an array of type int64 is no image; give uint8"),
        ({}, {"photo": {"bytes": b"", "path": None}, "number": 1}, TypeError, "'photo' is one dict, not a list of"),
        ({}, {"photo": Image.new("RGB", (8, 8))}, TypeError, "'photo' is one Image, .* use map with batched=True"),
        ({}, {"photo": np.zeros((8, 8, 3), np.uint8), "number": np.array(1)}, TypeError, "'number' is one ndarray"),
        ({}, {"photo": [None] * 2, "number": [1]}, ValueError, "'number' has 1 values, column 'photo' 2"),
        ({}, [None], TypeError, "must be a mapping from columns to lists or arrays, got list; leave out batch_format"),
        ({}, {"photo": [None] * 1000}, ValueError, "1000 images of column 'photo' in a row cannot be read"),
        ({"downmix": True}, {"photo": [None]}, ValueError, "--downmix has no meaning for AutoencoderVP"),
        ({"device": "cuda:9"}, {"photo": [None]}, ValueError, "finds no device 'cuda:9' here; there is cpu"),
    ],
)
def test_batches_that_cannot_be(images, settings, batch, error, message):
    with pytest.raises(error, match=message):
        BatchTokenizer(images[0], "photo", **settings)(batch)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1, 2], TypeError, "an array of type int64 is no audio clip; give floating point"),
        (np.zeros((2000, 2)), ValueError, r"\[channels, T\] of 1 to 1024 channels, got \[2000, 2\]"),
        ({"array": np.zeros(70)}, ValueError, 'the "sampling_rate" of an array must be an integer .* got None'),
        ({"array": np.zeros(70), "sampling_rate": 0.5}, ValueError, "an integer of at least 1 .Hz., got 0.5"),
    ],
)
def test_arrays_that_are_no_audio(clips, value, error, message):
    with pytest.raises(error, match=message):
        BatchTokenizer(clips[0], "sound")({"sound": [value]})


def test_an_empty_batch_after_many_unreadable_files(images):
    tokenize = BatchTokenizer(images[0], "photo")
    with pytest.raises(ValueError, match="in a row cannot be read"):
        tokenize({"photo": [None] * 1000})
    assert len(tokenize({"photo": []})["codes"]) == 0


def test_arguments_that_cannot_be(images):
    with pytest.raises(TypeError, match="a folder or a hub id, got AutoencoderVP; give the folder"):
        BatchTokenizer(tiny_vae(), "photo")
    with pytest.raises(ValueError, match="exact codes are computed in float32 and not compiled; leave out"):
        BatchTokenizer(images[0], "photo", exact=True, dtype="float16")
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int8'"):
        BatchTokenizer(images[0], "photo", dtype="int8")
