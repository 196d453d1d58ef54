"""A data set of audio into files of codes."""

import itertools
import re
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from audio_files import CORRUPT, RATE, clip, encoded, write_files, write_rows, write_shards
from audio_runs import ARCHITECTURE

from tiny import VP, tiny_codec
from vpvae_hf.data import CodeFiles, read_audio
from vpvae_hf.modalities import MODALITIES
from vpvae_hf.modalities.audio import AudioDataConfig

HOP = 4
LENGTHS = [100, 41, 200, 4, 80, 33, 199]


def noise(seed: int, samples: int) -> np.ndarray:
    return 0.2 * np.random.default_rng(seed).standard_normal(samples)


@pytest.fixture(scope="module")
def codec():
    """A codec of a small hop with 300 codes, some of its own latents."""
    codec = tiny_codec(VP | {"latent_dim": 2}, fitted=False, **ARCHITECTURE, downsampling_ratios=[2, 2])
    codec.set_codebook(codec.latent_vectors(torch.from_numpy(noise(0, HOP * 300)).float()[None, None])[0])
    return codec


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two shards of clips of several lengths, the first with an unreadable one and one shorter than a hop."""
    good = [encoded(noise(seed, samples)) for seed, samples in enumerate(LENGTHS)]
    shards = [[good[0], CORRUPT, good[1], encoded(noise(9, HOP - 1)), *good[2:5]], good[5:]]
    return write_shards(tmp_path_factory.mktemp("clips"), shards)


LABELS = [0, 2, 4, 5, 6, 7, 8]  # 1 and 3 are those of the unreadable clips


def code_files(name: str, folder, model, **settings) -> CodeFiles:
    folder.mkdir(exist_ok=True)
    audio, data = MODALITIES["audio"], AudioDataConfig(name=name, **settings)
    transform = audio.eval_transform(data, model)
    return CodeFiles(
        audio.open(data, transform, other_columns=True),
        folder,
        split="train",
        transform=transform,
        features=audio.code_features(data, model),
        encode=partial(audio.code_rows, transform=transform, model=model),
        batches_decoded=audio.batches_decoded,
    )


def write_all(name: str, folder, model, *, batch_size: int = 2, **settings):
    """The rows that were written."""
    files = code_files(name, folder, model, **settings)
    for number in files.unfinished():
        files.write(number, batch_size=batch_size)
    return datasets.load_dataset(str(folder), split="train")


def test_codes_are_those_of_each_clip_alone(codec, clips, tmp_path):
    rows = write_all(clips, tmp_path, codec)
    assert rows.features["codes"] == datasets.List(datasets.Value("uint16"))
    assert rows.features["num_samples"] == datasets.Value("int64")
    assert rows["label"][:] == LABELS
    assert rows["num_samples"][:] == LENGTHS
    for seed, row in enumerate(rows):
        # Rounded to 24 bits, as the file holds it.
        audio = read_audio({"bytes": encoded(noise(seed, LENGTHS[seed])), "path": None}, sampling_rate=RATE)
        with torch.no_grad():
            alone = codec.encode(torch.from_numpy(audio)[None, None]).audio_codes[0, 0].tolist()
        assert row["codes"] == alone
        assert len(row["codes"]) == -(-LENGTHS[seed] // HOP)
    assert len(set(itertools.chain(*rows["codes"][:]))) > 20


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_size_of_a_batch_changes_nothing(codec, clips, tmp_path, batch_size):
    expected = write_all(clips, tmp_path / "two", codec)
    rows = write_all(clips, tmp_path / "other", codec, batch_size=batch_size)
    assert rows.to_list() == expected.to_list()


def test_files_are_counted_and_written_once(codec, clips, tmp_path, caplog):
    files, seen = code_files(clips, tmp_path, codec), []
    assert [files.unfinished(rank, 2) for rank in range(2)] == [[0], [1]]
    for number, left in ((0, [1]), (1, [])):
        files.write(number, batch_size=2, progress=seen.append)
        assert files.unfinished() == left
    assert (files.count, sum(seen)) == (2, 9)
    assert files.totals() == (7, 2)
    (told,) = caplog.messages
    assert re.search(
        r"skipped 2 unreadable audio clips of .*, the first: .*recognised.*; .*it has 3 of at least 4", told
    )


def test_a_shard_without_a_clip_that_can_be_encoded(codec, tmp_path):
    name = write_shards(tmp_path / "clips", [[CORRUPT, encoded(clip(0, HOP - 1))], [encoded(clip(1))]])
    assert write_all(name, tmp_path / "codes", codec)["label"][:] == [2]


def test_a_folder_of_files(codec, tmp_path):
    write_files(tmp_path / "clips" / "train", {f"{number}.wav": encoded(clip(number)) for number in range(5)})
    rows = write_all(str(tmp_path / "clips"), tmp_path / "codes", codec)
    assert rows["file_name"][:] == [f"train/{number}.wav" for number in range(5)]
    assert set(rows.column_names) == {"codes", "num_samples", "file_name"}


def test_another_column_of_audio_is_kept_as_it_is(codec, tmp_path):
    sounds = [{"bytes": CORRUPT, "path": "room.wav"}, None]
    rows = [{"speech": {"bytes": encoded(clip(n)), "path": None}, "room": sound} for n, sound in enumerate(sounds)]
    features = {"speech": datasets.Audio(), "room": datasets.Audio(sampling_rate=8000)}
    name = write_rows(tmp_path / "clips" / "train.parquet", features, rows)
    written = write_all(name, tmp_path / "codes", codec, column="speech")
    assert written.features["room"] == datasets.Audio(sampling_rate=8000)
    assert written.cast_column("room", datasets.Audio(decode=False))["room"][:] == sounds


@pytest.mark.parametrize("column", ["codes", "num_samples"])
def test_a_column_of_that_name_is_not_overwritten(codec, tmp_path, column):
    features = {"sound": datasets.Audio(), column: datasets.Value("int64")}
    rows = [{"sound": {"bytes": encoded(clip(0)), "path": None}, column: 1}]
    name = write_rows(tmp_path / "clips" / "train.parquet", features, rows)
    with pytest.raises(ValueError, match=f'has a column "{column}" already; rename it there'):
        code_files(name, tmp_path / "codes", codec)


def test_another_kind_of_audio_stops_the_run(codec, tmp_path):
    stereo = np.stack([clip(1, 100)] * 2, axis=1)
    name = write_shards(tmp_path / "clips", [[encoded(clip(0)), encoded(stereo, RATE // 2)]])
    with pytest.raises(ValueError, match=r"1.wav has a sampling rate of 8000 Hz, not 16000 Hz"):
        write_all(name, tmp_path / "codes", codec)
    with pytest.raises(ValueError, match=r"1.wav has 2 channels"):
        write_all(name, tmp_path / "codes", codec, resample=True)
    assert list((tmp_path / "codes").rglob("*.parquet")) == []
    rows = write_all(name, tmp_path / "codes", codec, resample=True, downmix=True)
    assert rows["num_samples"][:] == [200, 200]
