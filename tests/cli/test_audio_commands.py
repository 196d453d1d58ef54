"""The commands on audio: a data set's, and those for a person's own files."""

import io
import json

import datasets
import numpy as np
import pytest
import soundfile
import torch
from audio_files import CORRUPT, RATE, encoded, write_files
from audio_runs import ARCHITECTURE, VECTOR, write_speech
from image_runs import ARCHITECTURE as IMAGE_ARCHITECTURE
from safetensors import safe_open
from speech import speech

from vpvae_hf import AutoencoderVP, VPCodecConfig, VPCodecModel
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


def test_the_codebook_of_a_size(data, tmp_path, capsys):
    model = VPCodecModel(VPCodecConfig(**ARCHITECTURE, quantizer=VECTOR))
    model.set_codebooks([torch.randn(size, model.quantize.latent_dim) for size in (16, 300)])
    model.save_pretrained(tmp_path / "tokenizer")
    name = write_files(tmp_path / "clips", {"a.wav": encoded(read(data, 0))})
    how = ["--tokenizer", str(tmp_path / "tokenizer"), "--codebook-size", "300"]
    assert main(["encode-audio", f"{name}/a.wav", *how]) == 0
    assert "codes of 300" in capsys.readouterr().out
    assert main(["decode-audio", f"{name}/a.safetensors"]) == 0
    model.select_codebook(300)
    decoded, _ = soundfile.read(f"{name}/a.decoded.wav", dtype="float32")
    audio = torch.from_numpy(read(data, 0))[None, None]
    expected = model.eval().detokenize(model.tokenize(audio))[0, 0, : len(decoded)].clamp(-1, 1)
    np.testing.assert_allclose(decoded, expected.detach().numpy(), atol=1e-4)


def test_refined_codes_of_a_file(codec, data, tmp_path, capsys):
    audio = read(data, 0)
    name = write_files(tmp_path / "clips", {"a.wav": encoded(audio)})
    assert main(["encode-audio", f"{name}/a.wav", "--tokenizer", codec, "--refine", "2"]) == 0
    with safe_open(f"{name}/a.safetensors", "pt") as opened:
        codes, header = opened.get_tensor("audio_codes"), opened.metadata()
    model, clip = VPCodecModel.from_pretrained(codec).eval(), torch.from_numpy(audio)[None, None]
    assert torch.equal(codes[:, 0].long(), model.tokenize(clip, refine_steps=2))
    assert not torch.equal(codes[:, 0].long(), model.tokenize(clip))
    assert header["refine_steps"] == "2"


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


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_a_file_goes_to_codes_and_back(codec, ending, tmp_path, capsys):
    clip = speech(1.23).numpy()
    soundfile.write(tmp_path / f"clip.{ending}", clip, RATE)
    assert main(["encode-audio", str(tmp_path / f"clip.{ending}"), "--tokenizer", codec]) == 0
    printed = lines(capsys)
    assert "1.23 s of audio in 205 codes of 240: 166.67 codes per second, 1.32 kbit/s" in printed[0]
    assert "encoded in" in printed[1]
    with safe_open(tmp_path / "clip.safetensors", "pt") as file:
        codes = file.get_tensor("audio_codes")
    assert (codes.dtype, codes.shape) == (torch.uint8, (1, 1, 205))
    made = tmp_path / f"made.{ending}"
    assert main(["decode-audio", str(tmp_path / "clip.safetensors"), "--output", str(made)]) == 0
    assert "1.23 s of audio decoded" in capsys.readouterr().out
    waveform, rate = soundfile.read(made, dtype="float32")
    assert (len(waveform), rate) == (len(clip), RATE)
    if ending != "ogg":  # which changes what it stores
        with torch.no_grad():
            expected = VPCodecModel.from_pretrained(codec).decode(codes).audio_values[0, 0, : len(clip)].numpy()
        np.testing.assert_allclose(waveform, expected, atol=1e-4)


def test_a_long_file_shows_how_far_it_is_and_is_the_same(codec, tmp_path, capsys):
    short_parts = save_codec(tmp_path / "codec", chunk_length_s=0.5)
    soundfile.write(tmp_path / "clip.wav", speech(2.2).numpy(), RATE)
    for name, tokenizer in (("whole", codec), ("parts", short_parts)):
        output = str(tmp_path / f"{name}.safetensors")
        arguments = ["encode-audio", str(tmp_path / "clip.wav"), "--tokenizer", tokenizer, "--output", output]
        assert main(arguments) == 0
        assert ("5/5" in capsys.readouterr().err) == (name == "parts")
        assert main(["decode-audio", output, "--output", str(tmp_path / f"{name}.wav")]) == 0
        assert ("5/5" in capsys.readouterr().err) == (name == "parts")
    whole, parts = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("whole", "parts"))
    np.testing.assert_allclose(parts, whole, atol=1e-4)


def test_resampling_and_downmixing_only_when_asked(codec, tmp_path, capsys):
    clip = speech(1.0).numpy()
    soundfile.write(tmp_path / "stereo.wav", np.stack([clip, clip], axis=1), 48000)
    arguments = ["encode-audio", str(tmp_path / "stereo.wav"), "--tokenizer", codec]
    assert main(arguments) == 1
    assert "48000 Hz, not 16000 Hz" in capsys.readouterr().err
    assert main([*arguments, "--resample"]) == 1
    assert "2 channels, not one" in capsys.readouterr().err
    assert not (tmp_path / "stereo.safetensors").exists()
    assert main([*arguments, "--resample", "--downmix"]) == 0
    assert "0.33 s of audio in 56 codes" in capsys.readouterr().out


def test_mistakes_are_one_line_and_lose_nothing(codec, tmp_path, capsys):
    soundfile.write(tmp_path / "clip.wav", speech(0.5).numpy(), RATE)
    clip, codes = str(tmp_path / "clip.wav"), str(tmp_path / "clip.safetensors")
    assert main(["encode-audio", clip, "--tokenizer", codec]) == 0
    write_files(tmp_path, {"corrupt.wav": CORRUPT, "one.wav": encoded(np.zeros(1)), "empty.wav": encoded(np.zeros(0))})
    torch.manual_seed(0)
    AutoencoderVP(**IMAGE_ARCHITECTURE, quantizer=FSP).save_pretrained(tmp_path / "images")
    unfitted, other = save_codec(tmp_path / "unfitted", VECTOR), save_codec(tmp_path / "other", seed=1)
    before = (tmp_path / "clip.safetensors").read_bytes()
    new = ["--output", str(tmp_path / "new.safetensors")]
    capsys.readouterr()
    for arguments, message in (
        (["encode-audio", clip, "--tokenizer", codec], "exists; use --overwrite"),
        (["encode-audio", clip, "--tokenizer", codec, "--output", str(tmp_path)], "is a folder"),
        (["encode-audio", clip, "--tokenizer", str(tmp_path / "images"), *new], "holds AutoencoderVP, which is for"),
        (["encode-audio", clip, "--tokenizer", unfitted, *new], "no fitted codebook"),
        (["encode-audio", clip, "--tokenizer", str(tmp_path / "nothing"), *new], "nothing"),
        (["encode-audio", clip, "--tokenizer", str(tmp_path), *new], "has no config.json"),
        (["encode-audio", str(tmp_path / "no.wav"), "--tokenizer", codec, *new], "no.wav"),
        (["encode-audio", str(tmp_path / "corrupt.wav"), "--tokenizer", codec, *new], "corrupt.wav"),
        (["encode-audio", str(tmp_path / "empty.wav"), "--tokenizer", codec, *new], "it holds no sample"),
        (["encode-audio", str(tmp_path / "one.wav"), "--tokenizer", codec, *new], "at least 96 samples"),
        (["decode-audio", codes, "--output", str(tmp_path / "a.xyz")], "must end in .wav, .flac or .ogg"),
        (["decode-audio", clip, "--output", str(tmp_path / "a.wav")], "holds no audio codes, or is damaged"),
        (["decode-audio", str(tmp_path / "no.safetensors")], "does not exist; name a file that"),
        (["decode-audio", codes, "--tokenizer", other], "is another than when"),
        (["evaluate", codec, "--dataset", "x", "--lpips"], "--lpips has no meaning for VPCodecModel"),
        (["evaluate", codec, "--dataset", "x", "--features", "~/net"], "--features has no meaning for VPCodecModel"),
    ):
        assert main(arguments) == 1, arguments
        error = capsys.readouterr().err
        assert message in error, error
        assert "Traceback" not in error
    assert (tmp_path / "clip.safetensors").read_bytes() == before
    assert not (tmp_path / "new.safetensors").exists()
    assert not list(tmp_path.glob(".*partial"))


def test_minutes_of_audio_can_be_written_as_ogg(tmp_path):
    """libsndfile's encoder ends the process where it gets so much at once."""
    codec = save_codec(tmp_path / "codec", downsampling_ratios=[8, 8, 8])
    soundfile.write(tmp_path / "long.flac", np.zeros(200 * RATE, np.float32), RATE)
    assert main(["encode-audio", str(tmp_path / "long.flac"), "--tokenizer", codec]) == 0
    made = tmp_path / "long.ogg"
    assert main(["decode-audio", str(tmp_path / "long.safetensors"), "--output", str(made)]) == 0
    assert soundfile.info(made).frames == 200 * RATE


def test_codes_of_joined_splits_can_be_loaded(codec, data, tmp_path, capsys):
    output = str(tmp_path / "codes")
    assert main(["tokenize", codec, "--dataset", data, "--output", output, "--split", "train+validation"]) == 0
    assert "10 clips" in lines(capsys)[-1]
    assert len(datasets.load_dataset(output, split="train_validation")) == 10
