"""The commands on data sets of audio."""

import io
import json

import datasets
import numpy as np
import pytest
import soundfile
import torch
from audio_files import RATE, encoded, write_files
from audio_runs import ARCHITECTURE, write_speech
from speech import speech

from vpvae_hf import VPCodecConfig, VPCodecModel
from vpvae_hf.cli.main import main

FSP = {"kind": "fsp", "levels": [8, 6, 5]}


def save_codec(folder, quantizer=FSP, seed=0, **settings):
    torch.manual_seed(seed)
    VPCodecModel(VPCodecConfig(**ARCHITECTURE | settings, quantizer=quantizer)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return save_codec(tmp_path_factory.mktemp("codec") / "tokenizer")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("speech"), shards={"train": [4, 3], "validation": [3]})


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_tokenize_then_decode(codec, data, tmp_path, capsys):
    assert main(["tokenize", codec, "--dataset", data, "--output", str(tmp_path / "codes"), "--batch-size", "2"]) == 0
    assert "7 clips in 2 files" in lines(capsys)[-1]
    manifest = json.loads((tmp_path / "codes" / "tokenizer.json").read_text())
    assert (manifest["clips"], manifest["hop_length"], manifest["sampling_rate"]) == (7, 96, RATE)
    rows = datasets.load_dataset(str(tmp_path / "codes"), split="train").with_format("numpy")
    model = VPCodecModel.from_pretrained(codec)
    for row in rows:
        length = round((0.8 + 0.1 * (row["label"] % 9)) * RATE)
        assert (len(row["codes"]), row["num_samples"]) == (-(-length // 96), length)
        audio = torch.from_numpy(read(data, row["label"]))[None, None]
        assert torch.equal(model.encode(audio).audio_codes[0, 0], torch.from_numpy(row["codes"].astype(np.int64)))


def test_what_wrote_no_file_may_be_started_with_other_settings(codec, tmp_path, capsys):
    stereo = encoded(np.stack([speech(0.8).numpy()] * 2, axis=1))
    name = write_files(tmp_path / "clips", {"a.wav": encoded(speech(0.8).numpy()), "b.wav": stereo})
    command = ["tokenize", codec, "--dataset", name, "--output", str(tmp_path / "codes")]
    assert main(command) == 1
    assert "b.wav has 2 channels, not one" in capsys.readouterr().err
    partial = tmp_path / "codes" / "data" / ".train-00000-of-00001.parquet.0.partial"
    partial.touch()
    assert main([*command, "--downmix"]) == 1
    assert f"another run is writing {partial}; name another folder, or remove" in capsys.readouterr().err
    partial.unlink()
    assert main([*command, "--downmix"]) == 0
    assert json.loads((tmp_path / "codes" / "tokenizer.json").read_text())["downmix"] is True
    assert main([*command, "--resample"]) == 1
    assert "holds codes of another run: its resample is False, here it is True" in capsys.readouterr().err


def read(data, label):
    rows = datasets.load_dataset(data, split="train").cast_column("sound", datasets.Audio(decode=False))
    return soundfile.read(io.BytesIO(rows[int(label)]["sound"]["bytes"]), dtype="float32")[0]


def test_an_option_for_images_is_refused(codec, capsys):
    for option in (["--lpips"], ["--features", "~/net"], ["--frechet", "net"]):
        assert main(["evaluate", codec, "--dataset", "x", *option]) == 1
        assert f"{option[0]} has no meaning for VPCodecModel" in capsys.readouterr().err


def test_codes_of_joined_splits_can_be_loaded(codec, data, tmp_path, capsys):
    output = str(tmp_path / "codes")
    assert main(["tokenize", codec, "--dataset", data, "--output", output, "--split", "train+validation"]) == 0
    assert "10 clips" in lines(capsys)[-1]
    assert len(datasets.load_dataset(output, split="train_validation")) == 10
