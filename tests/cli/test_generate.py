"""`vpvae generate`: files of images and audio from saved pipelines."""

import re

import numpy as np
import pytest
import soundfile
from PIL import Image

from tiny import HOP, RATE, tiny_codec, tiny_vae
from tiny_generators import FRAMES, SIZE, causal_pipeline, masked_pipeline, seeded, text_pipeline
from tiny_pipelines import dit, ldm
from vpvae_hf.cli.main import main

SHOWN = 256  # side of an image on a sheet, pixels
CLASSES = {"condition_size": 3, "condition_names": ["cat", "dog", "1"]}
MAKERS = {
    "classes": lambda: masked_pipeline(tiny_vae(), "amused", **CLASSES),
    "texts": lambda: text_pipeline("block", tiny_vae()),
    "none": lambda: causal_pipeline(tiny_vae()),
    "clips": lambda: causal_pipeline(tiny_codec(), **CLASSES),
    "diffusion": lambda: ldm(tiny_vae()),
    "other": lambda: dit(tiny_vae()),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of pipelines by their names, saved when they are first asked for."""
    folders = {}

    def folder(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            MAKERS[name]().save_pretrained(folders[name])
        return str(folders[name])

    return folder


def generated(folder, output, *options):
    assert main(["generate", folder, "--output", str(output), "--device", "cpu", *options]) == 0
    return {path.name: path.read_bytes() for path in output.iterdir()}


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_images_of_classes_and_their_sheet(saved, tmp_path, capsys):
    options = ("--class", "dog", "cat", "--num", "2", "--seed", "7", "--guidance", "1.5", "--top-p", "0.9")
    files = generated(saved("classes"), tmp_path / "out", *options)
    assert sorted(files) == ["000.png", "001.png", "002.png", "003.png", "samples.png"]
    made = masked_pipeline(tiny_vae(), "amused", **CLASSES)(
        ["dog", "dog", "cat", "cat"], generator=seeded(7), guidance_scale=1.5, top_p=0.9
    )
    for number, image in enumerate(made.images):
        np.testing.assert_array_equal(pixels(tmp_path / "out" / f"00{number}.png"), np.asarray(image))
    sheet = pixels(tmp_path / "out" / "samples.png")
    assert sheet.shape == (2 * SHOWN + 4, 2 * SHOWN + 4, 3)
    factor = SHOWN // SIZE
    enlarged = np.asarray(made.images[2]).repeat(factor, axis=0).repeat(factor, axis=1)
    np.testing.assert_array_equal(sheet[-SHOWN:, :SHOWN], enlarged)
    printed = capsys.readouterr().out
    assert re.search(r"^4 images in \d+\.\d s on cpu: .*/000.png to 003.png; all: .*/samples.png$", printed, re.M)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("classes", ["--class", "0", "cat"]),
        ("texts", ["--text", "a red dog", "--guidance", "3"]),
        ("none", ["--temperature", "0.5", "--top-k", "3"]),
        ("diffusion", ["--num", "1"]),
    ],
)
def test_a_seed_decides_what_is_made(saved, name, options, tmp_path):
    first, again, other = (
        generated(saved(name), tmp_path / folder, *options, "--seed", seed)
        for folder, seed in (("first", "0"), ("again", "0"), ("other", "1"))
    )
    assert first == again
    assert first["samples.png"] != other["samples.png"]


def test_a_name_goes_before_an_id(saved, tmp_path):
    """ "1" is the name of the class 2; "0" is no name."""
    made = generated(saved("classes"), tmp_path / "digits", "--class", "1", "0", "--num", "1")
    pipeline = masked_pipeline(tiny_vae(), "amused", **CLASSES)
    for number, image in enumerate(pipeline([2, 0], generator=seeded(0)).images):
        np.testing.assert_array_equal(pixels(tmp_path / "digits" / f"00{number}.png"), np.asarray(image))
    assert len(made) == 3


def test_many_images_are_made_some_at_a_time(saved, tmp_path):
    files = generated(saved("none"), tmp_path / "out", "--num", "18")
    assert len(files) == 19
    # Five in each of four rows; the last row is filled up with white.
    sheet = pixels(tmp_path / "out" / "samples.png")
    assert sheet.shape == (4 * SHOWN + 12, 5 * SHOWN + 16, 3)
    assert (sheet[-SHOWN:, -SHOWN:] == 255).all()


def test_clips(saved, tmp_path, capsys):
    files = generated(saved("clips"), tmp_path / "out", "--class", "dog", "--num", "2")
    assert sorted(files) == ["000.flac", "001.flac", "samples.flac"]
    made = causal_pipeline(tiny_codec(), **CLASSES)(["dog"] * 2, generator=seeded(0)).audios
    for number, wanted in enumerate(made):
        clip, rate = soundfile.read(tmp_path / "out" / f"00{number}.flac")
        assert rate == RATE
        np.testing.assert_allclose(clip, wanted.clip(-1, 1), atol=1e-4)
    assert len(soundfile.read(tmp_path / "out" / "samples.flac")[0]) == 2 * (FRAMES * HOP + RATE // 2)
    assert "2 clips in" in capsys.readouterr().out


REFUSED = [
    ("classes", ["--class", "dgo"], "unknown class 'dgo'; did you mean 'dog'? valid: cat, dog, 1"),
    ("classes", ["--class", "3"], "conditions must lie in 0..2, got 3..3"),
    ("classes", ["--text", "a dog"], "was trained without texts, got --text 'a dog'; name classes with --class"),
    ("classes", ["--guidance", "2"], "--guidance 2 needs a class or text to guide to; give a class with --class"),
    ("classes", ["--top-p", "2"], "top_p must be in (0, 1], or None for no limit, got 2.0"),
    ("classes", ["--device", "gpu"], "torch finds no device 'gpu' here"),
    ("texts", ["--class", "dog"], "was trained without classes, got --class dog; give a text with --text"),
    ("texts", ["--guidance", "2"], "give a text with --text"),
    ("texts", ["--text", "a red dog and a photo of a cat"], "the model knows texts of at most 5 ids"),
    ("none", ["--class", "dog"], "was trained without classes, got --class dog; leave --class out"),
    ("none", ["--text", "dog"], "was trained without texts, got --text 'dog'; leave --text out"),
    ("none", ["--guidance", "2"], "this pipeline was trained without these, so leave --guidance out"),
    ("diffusion", ["--class", "dog"], "is an LDMPipeline, which does not use --class; leave it out"),
    ("diffusion", ["--top-k", "3"], "is an LDMPipeline, which does not use --top-k"),
    ("other", [], "holds a DiTPipeline, which this command does not know; it knows VPAutoregressivePipeline, VPMasked"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_what_is_refused(saved, name, options, message, tmp_path, capsys):
    assert main(["generate", saved(name), "--output", str(tmp_path / "out"), *options]) == 1
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith("vpvae generate: ")
    assert message in printed
    assert not (tmp_path / "out").exists()


def test_no_pipeline(tmp_path, capsys):
    tiny_vae().save_pretrained(tmp_path / "run" / "tokenizer")
    causal_pipeline(tiny_vae()).save_pretrained(tmp_path / "run" / "pipeline")
    full = tmp_path / "full"
    full.mkdir()
    (full / "000.png").touch()
    for arguments, message in (
        (["run"], "run is no saved pipeline: it has no model_index.json; name "),
        (
            ["run/tokenizer"],
            "it has no model_index.json, but AutoencoderVP; name a pipeline that a generation",
        ),
        (["run/pipelin"], "there is no file or folder "),
        (["run/pipeline", "--output", str(full)], "full exists and is not empty; use --overwrite, or another folder"),
    ):
        given = [str(tmp_path / arguments[0]), *arguments[1:]]
        assert main(["generate", *given]) == 1
        assert message in capsys.readouterr().err
    assert main(["generate", str(tmp_path / "run/pipeline"), "--num", "1", "--output", str(full), "--overwrite"]) == 0
