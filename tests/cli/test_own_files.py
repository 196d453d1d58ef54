"""`vpvae encode`, `decode` and `reconstruct`: a person's own pictures and sounds."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audio_files import CORRUPT, RATE, encoded, write_files
from audio_runs import ARCHITECTURE, VECTOR
from image_runs import ARCHITECTURE as IMAGE_ARCHITECTURE
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from speech import speech

from vpvae_hf import AutoencoderVP, VPCodecConfig, VPCodecModel
from vpvae_hf.cli.main import main
from vpvae_hf.data import read_codes

FSP = {"kind": "fsp", "levels": [8, 6, 5]}
HEIGHT, WIDTH, SECONDS = 37, 58, 1.23


@dataclass(frozen=True)
class Kind:
    """What the tests need of pictures or of sounds."""

    model: type
    new: Callable
    write: Callable[[Path], None]
    read: Callable[[Path], np.ndarray]
    suffix: str
    decoded: str
    described: str
    grid: list[int]


def write_picture(path):
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(values).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path)


def new_vae(quantizer=FSP, **settings):
    return AutoencoderVP(**IMAGE_ARCHITECTURE | settings, quantizer=quantizer)


def new_codec(quantizer=FSP, **settings):
    return VPCodecModel(VPCodecConfig(**ARCHITECTURE | settings, quantizer=quantizer))


KINDS = {
    "image": Kind(
        AutoencoderVP, new_vae, write_picture, lambda path: np.asarray(Image.open(path)), ".png", ".png",
        f"{WIDTH} x {HEIGHT} pixels", [19, 29],
    ),
    "audio": Kind(
        VPCodecModel, new_codec, lambda path: soundfile.write(path, speech(SECONDS).numpy(), RATE),
        lambda path: soundfile.read(path, dtype="float32")[0], ".flac", ".wav", f"{SECONDS} s at {RATE} Hz", [205],
    ),
}  # fmt: skip


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def save(folder, model):
    torch.manual_seed(0)
    model().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {kind.model: save(folder / name, kind.new) for name, kind in KINDS.items()}


def run(*arguments):
    return main([str(argument) for argument in arguments])


def expected(kind, model, source, **how):
    """Codes [*grid] of a file, and the signal that they are decoded to, as a file holds it."""
    if kind.model is AutoencoderVP:
        batch = model.preprocessor()(source, return_tensors="pt")
        codes = model.tokenize(batch.pixel_values, **how)
        return codes[0], np.asarray(model.preprocessor().post_process(model.detokenize(codes), batch.original_sizes)[0])
    audio = torch.from_numpy(kind.read(source))[None, None]
    codes = model.tokenize(audio, **how)
    return codes[0], model.detokenize(codes)[0, 0, : audio.shape[-1]].clamp(-1, 1).numpy()


@pytest.mark.parametrize("pack", [[], ["--pack"]], ids=["whole", "packed"])
def test_a_file_goes_to_codes_and_back(kind, pack, tokenizers, tmp_path, capsys):
    source, tokenizer = tmp_path / f"own{kind.suffix}", tokenizers[kind.model]
    kind.write(source)
    assert run("encode", source, "--tokenizer", tokenizer, *pack) == 0
    printed = capsys.readouterr().out
    count = np.prod(kind.grid)
    assert f"{source}: {kind.described} in {count} codes of 240, " in printed
    size = (tmp_path / "own.safetensors").stat().st_size
    assert f"; {count} bytes of codes, {size:,} with the header: {tmp_path / 'own.safetensors'}" in printed
    codes, made = expected(kind, kind.model.from_pretrained(tokenizer).eval(), source)
    written, header = read_codes(tmp_path / "own.safetensors")
    assert torch.equal(written, codes)
    assert header["refine_steps"] == "0"
    assert run("decode", tmp_path / "own.safetensors") == 0
    output = tmp_path / f"own.decoded{kind.decoded}"
    assert f"{kind.described}: {output}" in capsys.readouterr().out
    np.testing.assert_allclose(kind.read(output), made, atol=1e-4)


def test_codes_take_as_few_bits_as_they_need(tmp_path, tokenizers, capsys):
    model = new_vae({"kind": "vp", "codebook_size": 600, "latent_dim": 3})
    model.set_codebook(torch.randn(600, 3))
    model.save_pretrained(tmp_path / "tokenizer")
    write_picture(tmp_path / "a.png")
    for pack, size in ([], 551 * 2), (["--pack"], -(-551 * 10 // 8)):
        assert run("encode", tmp_path / "a.png", "--tokenizer", tmp_path / "tokenizer", "--overwrite", *pack) == 0
        assert f"; {size:,} bytes of codes" in capsys.readouterr().out
        with safe_open(tmp_path / "a.safetensors", "pt") as opened:
            assert opened.get_tensor("codes").nbytes == size
        codes, _ = read_codes(tmp_path / "a.safetensors")
        assert torch.equal(codes, model.eval().tokenize(_values(model, tmp_path / "a.png"))[0])


def test_frequent_codes_take_fewer_bits(kind, tokenizers, tmp_path, capsys):
    """Nearly all codes of a sheet of one colour, or of silence, are the same."""
    source, tokenizer = tmp_path / f"own{kind.suffix}", tokenizers[kind.model]
    if kind.model is AutoencoderVP:
        Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 60)).save(source)
    else:
        soundfile.write(source, np.zeros(int(SECONDS * RATE)), RATE)
    count = np.prod(kind.grid)
    assert run("encode", source, "--tokenizer", tokenizer, "--entropy-code") == 0
    written, _ = read_codes(tmp_path / "own.safetensors")
    with safe_open(tmp_path / "own.safetensors", "pt") as opened:
        stored = opened.get_tensor("codes").nbytes
    assert stored < count / 2
    assert f"; {stored:,} bytes of codes" in capsys.readouterr().out
    assert torch.equal(written, expected(kind, kind.model.from_pretrained(tokenizer).eval(), source)[0])
    assert run("decode", tmp_path / "own.safetensors") == 0


def test_entropy_coding_needs_a_library_before_anything_is_encoded(tokenizers, tmp_path, monkeypatch, capsys):
    write_picture(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "constriction", None)
    assert run("encode", tmp_path / "a.png", "--tokenizer", "missing", "--entropy-code") == 1
    assert "pip install 'vpvae_hf[entropy]'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("encode", tmp_path / "a.png", "--entropy-code", "--pack")
    assert "--pack: not allowed with argument --entropy-code" in capsys.readouterr().err


def test_decoding_tells_what_is_missing_before_it_writes_anything(tokenizers, tmp_path, monkeypatch, capsys):
    tokenizer = tokenizers[AutoencoderVP]
    write_picture(tmp_path / "a.png")
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "b.png")
    assert run("encode", tmp_path, "--tokenizer", tokenizer, "--entropy-code") == 0
    (tmp_path / "a.safetensors").unlink()
    assert run("encode", tmp_path / "a.png", "--tokenizer", tokenizer) == 0
    monkeypatch.setitem(sys.modules, "constriction", None)
    assert run("decode", tmp_path) == 1
    assert "pip install 'vpvae_hf[entropy]'" in capsys.readouterr().err
    assert not (tmp_path / "a.decoded.png").exists()
    assert run("decode", tmp_path / "a.safetensors") == 0


def _values(model, file):
    return model.preprocessor()(file, return_tensors="pt").pixel_values


def test_several_codes_a_token(tmp_path, kind):
    tokenizer = save(
        tmp_path / "tokenizer",
        lambda: kind.new({"kind": "token_bridge", "codebook_size": 4, "latent_dim": 3, "fitted": True}),
    )
    model = kind.model.from_pretrained(tokenizer)
    source = tmp_path / f"own{kind.suffix}"
    kind.write(source)
    assert run("encode", source, "--tokenizer", tokenizer, "--pack") == 0
    codes, _ = read_codes(tmp_path / "own.safetensors")
    assert list(codes.shape) == [*kind.grid, 3]
    assert torch.equal(codes, expected(kind, model.eval(), source)[0])
    assert run("decode", tmp_path / "own.safetensors") == 0


def test_refined_codes(kind, tokenizers, tmp_path):
    source, tokenizer = tmp_path / f"own{kind.suffix}", tokenizers[kind.model]
    kind.write(source)
    assert run("encode", source, "--tokenizer", tokenizer, "--refine", "2") == 0
    codes, header = read_codes(tmp_path / "own.safetensors")
    model = kind.model.from_pretrained(tokenizer).eval()
    assert torch.equal(codes, expected(kind, model, source, refine_steps=2)[0])
    assert not torch.equal(codes, expected(kind, model, source)[0])
    assert header["refine_steps"] == "2"


def test_the_codebook_of_a_size(kind, tmp_path, capsys):
    model = kind.new(VECTOR)
    model.set_codebooks([torch.randn(size, model.quantize.latent_dim) for size in (16, 300)])
    model.save_pretrained(tmp_path / "tokenizer")
    source = tmp_path / f"own{kind.suffix}"
    kind.write(source)
    assert run("encode", source, "--tokenizer", tmp_path / "tokenizer", "--codebook-size", "300") == 0
    assert "codes of 300" in capsys.readouterr().out
    assert run("decode", tmp_path / "own.safetensors", "--output", tmp_path / f"made{kind.decoded}") == 0
    model.select_codebook(300)
    _, made = expected(kind, model.eval(), source)
    np.testing.assert_allclose(kind.read(tmp_path / f"made{kind.decoded}"), made, atol=1e-4)


def test_a_picture_of_both(kind, tokenizers, tmp_path, capsys):
    source = tmp_path / f"own{kind.suffix}"
    kind.write(source)
    assert run("reconstruct", source, "--tokenizer", tokenizers[kind.model]) == 0
    printed = capsys.readouterr().out
    assert kind.described in printed
    assert all(
        phrase in printed for phrase in {AutoencoderVP: ["PSNR", "bits per pixel"]}.get(kind.model, ["STOI", "kbit/s"])
    )
    picture = np.asarray(Image.open(tmp_path / "own.reconstruction.png"))
    model = kind.model.from_pretrained(tokenizers[kind.model]).eval()
    _, made = expected(kind, model, source)
    if kind.model is AutoencoderVP:
        column = (picture.shape[1] - 2 * 4) // 3  # as wide as the widest text below
        np.testing.assert_array_equal(picture[:HEIGHT, :WIDTH], kind.read(source))
        np.testing.assert_array_equal(picture[:HEIGHT, column + 4 : column + 4 + WIDTH], made)
        assert (picture[HEIGHT:] < 128).any()
    else:
        np.testing.assert_allclose(kind.read(tmp_path / "own.reconstruction.wav"), made, atol=1e-4)


def test_folders_keep_their_tree(tokenizers, tmp_path, capsys):
    (tmp_path / "own" / "more").mkdir(parents=True)
    write_picture(tmp_path / "own" / "a.png")
    write_picture(tmp_path / "own" / "more" / "b.jpg")
    (tmp_path / "own" / "notes.txt").write_text("notes")
    (tmp_path / "own" / ".hidden.png").write_bytes(b"")
    (tmp_path / "own" / "bad.png").write_bytes(b"no picture")
    image = tokenizers[AutoencoderVP]
    named = [tmp_path / "own", tmp_path / "own" / "a.png"]  # which is in that folder
    assert run("encode", *named, "--tokenizer", image, "--output", tmp_path / "codes") == 1
    printed = capsys.readouterr()
    assert "2 of 3 files in" in printed.out
    assert f"skipped {tmp_path / 'own' / 'bad.png'}: " in printed.out
    assert "1 of 3 files could not be read, the first: " in printed.err
    names = ["a.safetensors", "more/b.safetensors"]
    assert sorted(str(file.relative_to(tmp_path / "codes")) for file in (tmp_path / "codes").rglob("*.*")) == names
    assert run("decode", tmp_path / "codes", "--output", tmp_path / "made") == 0
    assert sorted(str(file.relative_to(tmp_path / "made")) for file in (tmp_path / "made").rglob("*.*")) == [
        "a.png",
        "more/b.png",
    ]
    assert run("encode", str(tmp_path / "own" / "*" / "*.jpg"), "--tokenizer", image) == 0
    assert (tmp_path / "own" / "more" / "b.safetensors").exists()


def test_sounds_are_resampled_and_downmixed(tokenizers, tmp_path, capsys):
    clip = speech(1.0).numpy()
    soundfile.write(tmp_path / "stereo.wav", np.stack([clip, clip], axis=1), 48000)
    assert run("encode-audio", tmp_path / "stereo.wav", "--tokenizer", tokenizers[VPCodecModel]) == 0
    assert "0.33 s at 16000 Hz in 56 codes" in capsys.readouterr().out
    assert run("decode-audio", tmp_path / "stereo.safetensors") == 0


def test_large_signals_show_how_far_they_are(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vpvae_hf.modalities.image._TILE", 32)
    tokenizer = save(
        tmp_path / "tokenizer", lambda: kind.new(**({"chunk_length_s": 0.5} if kind.model is VPCodecModel else {}))
    )
    source = tmp_path / f"own{kind.suffix}"
    kind.write(source)
    parts = 3 if kind.model is VPCodecModel else 2 * 3
    assert run("encode", source, "--tokenizer", tokenizer) == 0
    assert f"{parts}/{parts}" in capsys.readouterr().err
    assert run("decode", tmp_path / "own.safetensors") == 0
    assert f"{parts}/{parts}" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_kinds_of_sound_files(ending, tokenizers, tmp_path):
    clip = speech(0.5).numpy()
    soundfile.write(tmp_path / f"clip.{ending}", clip, RATE)
    assert run("encode", tmp_path / f"clip.{ending}", "--tokenizer", tokenizers[VPCodecModel]) == 0
    assert run("decode", tmp_path / "clip.safetensors", "--output", tmp_path / f"made.{ending}") == 0
    info = soundfile.info(tmp_path / f"made.{ending}")
    assert (info.frames, info.samplerate, info.format) == (len(clip), RATE, ending.upper())


@pytest.mark.parametrize("ending", ["webp", "jpg", "tiff", "bmp"])
def test_kinds_of_pictures(ending, tokenizers, tmp_path):
    write_picture(tmp_path / "a.png")
    assert run("encode", tmp_path / "a.png", "--tokenizer", tokenizers[AutoencoderVP]) == 0
    assert run("decode", tmp_path / "a.safetensors", "--output", tmp_path / f"made.{ending}") == 0
    with Image.open(tmp_path / f"made.{ending}") as image:
        assert image.size == (WIDTH, HEIGHT)


def test_codes_of_version_0_1(tokenizers, tmp_path):
    model = VPCodecModel.from_pretrained(tokenizers[VPCodecModel]).eval()
    codes = torch.randint(0, 240, (1, 1, 50))
    header = {
        "format": "vpvae_hf audio codes", "tokenizer": tokenizers[VPCodecModel], "revision": "",
        "fingerprint": json.dumps(model.fingerprint()), "sampling_rate": str(RATE), "num_samples": "4750",
        "codebook_size": "240", "refine_steps": "0",
    }  # fmt: skip
    save_file({"audio_codes": codes.to(torch.uint8)}, tmp_path / "old.safetensors", metadata=header)
    assert run("decode-audio", tmp_path / "old.safetensors") == 0
    made, _ = soundfile.read(tmp_path / "old.decoded.wav", dtype="float32")
    expected = model.detokenize(codes[:, 0])[0, 0, :4750].clamp(-1, 1).numpy()
    np.testing.assert_allclose(made, expected, atol=1e-4)


def test_minutes_of_audio_can_be_written_as_ogg(tmp_path):
    """libsndfile's encoder ends the process if it gets so much at once."""
    tokenizer = save(tmp_path / "codec", lambda: new_codec(downsampling_ratios=[8, 8, 8]))
    soundfile.write(tmp_path / "long.flac", np.zeros(200 * RATE, np.float32), RATE)
    assert run("encode", tmp_path / "long.flac", "--tokenizer", tokenizer) == 0
    assert run("decode", tmp_path / "long.safetensors", "--output", tmp_path / "long.ogg") == 0
    assert soundfile.info(tmp_path / "long.ogg").frames == 200 * RATE


def test_mistakes_are_one_line_and_lose_nothing(tokenizers, tmp_path, capsys):
    image, codec = tokenizers[AutoencoderVP], tokenizers[VPCodecModel]
    soundfile.write(tmp_path / "clip.wav", speech(0.5).numpy(), RATE)
    write_picture(tmp_path / "clip.png")
    clip, codes = tmp_path / "clip.wav", tmp_path / "clip.safetensors"
    assert run("encode", clip, "--tokenizer", codec) == 0
    write_files(tmp_path, {"corrupt.wav": CORRUPT, "one.wav": encoded(np.zeros(1)), "empty.wav": encoded(np.zeros(0))})
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "nothing").mkdir()
    unfitted = save(tmp_path / "unfitted", lambda: new_codec(VECTOR))
    other = save(tmp_path / "other", lambda: new_codec({"kind": "fsp", "levels": [5, 5]}))
    before = codes.read_bytes()
    new = ["--output", tmp_path / "new.safetensors"]
    capsys.readouterr()
    (tmp_path / "cut_off.safetensors").write_bytes(before[:-8])
    (tmp_path / "unfitted" / "config").write_text("")
    for arguments, message in (
        (["encode", clip, "--tokenizer", codec], "exists; use --overwrite"),
        (
            ["encode", clip, tmp_path / "clip.png", "--tokenizer", codec],
            f"clip.safetensors would be written for {clip} and {tmp_path / 'clip.png'}; rename one",
        ),
        (["encode", clip, clip, "--tokenizer", codec, *new], "names one file, but 2 would be written; name a folder"),
        (["encode", clip, "--tokenizer", image, *new], "a tokenizer of images; name a tokenizer of clips with"),
        (["encode", clip, "--tokenizer", unfitted, *new], "no fitted codebook"),
        (["encode", clip, "--tokenizer", tmp_path / "none", *new], "none"),
        (["encode", clip, "--tokenizer", tmp_path, *new], "has no config.json"),
        (["encode", clip, "--tokenizer", codec, "--output", tmp_path / "v1.0"], "must exist if its name has a dot"),
        (
            ["encode", clip, clip, "--tokenizer", codec, "--output", tmp_path / "v1.0"],
            "must exist if its name has a dot",
        ),
        (
            ["encode", clip, "--tokenizer", codec, "--output", tmp_path / "unfitted" / "config"],
            "is a file; name a folder",
        ),
        (["encode", clip, "--tokenizer", codec, "--output", codes / "new.safetensors"], "is a file; name a folder"),
        (["encode", tmp_path / "no.wav", "--tokenizer", codec, *new], "no.wav does not exist; name pictures or sounds"),
        (["encode", tmp_path / "*.no", "--tokenizer", codec, *new], "*.no matches no pictures or sounds; name"),
        (
            ["encode", tmp_path / "nothing", "--tokenizer", codec, *new],
            "nothing holds no pictures or sounds that can be read here; name",
        ),
        (
            ["encode", tmp_path / "notes.txt", "--tokenizer", codec, *new],
            "notes.txt is of a type that this command does not read",
        ),
        (["encode", tmp_path / "corrupt.wav", "--tokenizer", codec, *new], "corrupt.wav"),
        (["encode", tmp_path / "empty.wav", "--tokenizer", codec, *new], "it holds no sample"),
        (["encode", tmp_path / "one.wav", "--tokenizer", codec, *new], "at least 96 samples"),
        (["decode", codes, "--output", tmp_path / "a.xyz"], "must end in .wav or .flac or .ogg"),
        (
            ["decode", clip, "--output", tmp_path / "a.wav"],
            "clip.wav is of a type that this command does not read; name files of",
        ),
        (["decode", other + "/model.safetensors"], "is of a type that this command does not read; name files of codes"),
        (["decode", tmp_path / "cut_off.safetensors"], "is damaged, or no file of codes"),
        (["decode", tmp_path / "no.safetensors"], "does not exist; name files of codes"),
        (["decode", codes, "--tokenizer", other], "is another than when"),
        (
            ["decode", codes, "--tokenizer", image],
            "a tokenizer of images; name a tokenizer of clips with --tokenizer, or leave",
        ),
        (["reconstruct", clip, "--tokenizer", codec, "--output", tmp_path / "clip.png", "--overwrite"], "is read"),
    ):
        assert run(*arguments) == 1, arguments
        error = capsys.readouterr().err
        assert message in error, error
        assert "Traceback" not in error
    assert codes.read_bytes() == before
    assert not (tmp_path / "new.safetensors").exists()
    assert not list(tmp_path.glob(".*partial"))


def test_sounds_are_not_written_over(tokenizers, tmp_path, capsys):
    """The sounds that `reconstruct` writes in addition to a picture of original and reconstruction."""
    soundfile.write(tmp_path / "clip.flac", speech(0.5).numpy(), RATE)
    (tmp_path / "clip.reconstruction.wav").write_bytes(b"another")
    command = ["reconstruct", tmp_path / "clip.flac", "--tokenizer", tokenizers[VPCodecModel]]
    assert run(*command) == 1
    assert "clip.reconstruction.wav exists; use --overwrite" in capsys.readouterr().err
    assert not (tmp_path / "clip.reconstruction.png").exists()
    assert (tmp_path / "clip.reconstruction.wav").read_bytes() == b"another"
    assert run(*command, "--overwrite") == 0
    assert soundfile.info(tmp_path / "clip.reconstruction.wav").frames == RATE // 2


@pytest.mark.parametrize("output", [[], ["--output", "own/made"]], ids=["beside", "within"])
def test_a_folder_done_twice_has_nothing_made_of_what_was_made(output, tokenizers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    write_picture("own/a.png")
    for _ in range(2):
        assert run("reconstruct", "own", "--tokenizer", tokenizers[AutoencoderVP], "--overwrite", *output) == 0
    assert len(list(Path("own").rglob("*.png"))) == 2


def test_codes_of_what_was_decoded_are_codes(tokenizers, tmp_path):
    """Also if they lie in the output folder."""
    write_picture(tmp_path / "a.decoded.png")
    codes = tmp_path / "own" / "a.decoded.safetensors"
    assert run("encode", tmp_path / "a.decoded.png", "--tokenizer", tokenizers[AutoencoderVP], "--output", codes) == 0
    for output in ("own", "own/made", "own"):
        assert run("decode", tmp_path / "own", "--output", tmp_path / output, "--overwrite") == 0
    (tmp_path / "own" / "made" / "b.safetensors").write_bytes(codes.read_bytes())
    assert run("decode", tmp_path / "own", "--output", tmp_path / "own" / "made", "--overwrite") == 0
    assert (tmp_path / "own" / "made" / "made" / "b.png").exists()


def test_an_output_folder_around_the_files_leaves_none_out(tokenizers, tmp_path):
    (tmp_path / "own").mkdir()
    write_picture(tmp_path / "own" / "a.png")
    assert run("encode", tmp_path / "own", "--tokenizer", tokenizers[AutoencoderVP], "--output", tmp_path) == 0
    assert (tmp_path / "a.safetensors").exists()


def test_names_of_files(tokenizers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["[1]", "a.b", "with space", "\u6f22", "~nobody"]
    for name in names:
        write_picture(f"{name}.png")
    assert run("encode", *(f"{name}.png" for name in names), "--tokenizer", tokenizers[AutoencoderVP]) == 0
    assert run("decode", *(f"{name}.safetensors" for name in names)) == 0
    assert all(Path(f"{name}.decoded.png").exists() for name in names)


def test_links_to_folders_are_followed_once(tokenizers, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write_picture(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "own" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "own" / "loop").symlink_to(tmp_path / "own")
    assert run("encode", tmp_path / "own", "--tokenizer", tokenizers[AutoencoderVP], "--output", tmp_path / "c") == 0
    assert [str(file.relative_to(tmp_path / "c")) for file in (tmp_path / "c").rglob("*.*")] == ["link/a.safetensors"]


def test_folders_that_may_not_be_opened_are_told(tokenizers, tmp_path, monkeypatch, caplog):
    (tmp_path / "secret").mkdir()
    write_picture(tmp_path / "a.png")
    scandir = os.scandir

    def refuses(place):
        if str(place).endswith("secret"):
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuses)
    assert run("encode", tmp_path, "--tokenizer", tokenizers[AutoencoderVP]) == 0
    assert "1 folders cannot be opened and are left out, the first: secret/" in caplog.text


def test_patterns_leave_out_what_folders_do(tokenizers, tmp_path):
    (tmp_path / "folder").mkdir()
    write_picture(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("notes")
    assert run("encode", tmp_path / "*", "--tokenizer", tokenizers[AutoencoderVP]) == 0
    save_file({"weights": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert run("decode", tmp_path) == 0
    assert (tmp_path / "a.decoded.png").exists()


def test_nothing_is_done_if_the_tokenizer_is_of_another_kind_than_some_files(tokenizers, tmp_path, capsys):
    write_picture(tmp_path / "a.png")
    soundfile.write(tmp_path / "b.wav", speech(0.5).numpy(), RATE)
    assert run("encode", tmp_path, "--tokenizer", tokenizers[AutoencoderVP]) == 1
    assert f"or leave out {tmp_path / 'b.wav'}" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_tokenizer_that_moved(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "here" / "tokenizer", new_vae)
    write_picture("a.png")
    assert run("encode", "a.png", "--tokenizer", "here/tokenizer") == 0
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setattr("vpvae_hf.modalities.hf_hub_download", _no_such_repository)
    assert run("decode", "a.safetensors") == 1
    assert (
        "was made with here/tokenizer; if that tokenizer is elsewhere now, name it with --tokenizer"
        in capsys.readouterr().err
    )
    assert run("decode", "a.safetensors", "--tokenizer", "there/tokenizer") == 0


def _no_such_repository(*_, **how):
    raise FileNotFoundError("no such repository")


@pytest.mark.parametrize("size", [(1, 1), (300, 1)])
def test_pictures_too_small_to_be_measured(size, tokenizers, tmp_path, capsys):
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert run("reconstruct", tmp_path / "a.png", "--tokenizer", tokenizers[AutoencoderVP]) == 0
    assert f"per pixel, not measured (images of {size[1]} x {size[0]} pixels have no SSIM" in capsys.readouterr().out
    with Image.open(tmp_path / "a.reconstruction.png") as picture:
        assert picture.width >= 3 * size[0] + 2 * 4
        assert 1 < picture.height < 50  # with what is written below


DAMAGES = {
    "no kind": {"kind": None},
    "codes of video": {"kind": "video"},
    "'tokenizer'": {"tokenizer": None},
    "'revision'": {"revision": None},
    "'fingerprint'": {"fingerprint": None},
    "'size'": {"size": None},
    "'height'": {"size": "{}"},
    "-3": {"size": '{"height": 2, "width": -3}'},
    "ZeroDivisionError": {"size": '{"height": 0, "width": 3}'},
    "JSONDecodeError": {"size": "wide"},
    "'codebook_size'": {"codebook_size": None},
    "'packed'": {"packed": None},
    "'shape'": {"packed": "{}"},
    "bytes for 40000 codes of 8 bits": {"packed": '{"bits": 8, "shape": [200, 200]}'},
    "TypeError": {"fingerprint": "1"},
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damaged_headers_of_codes(message, tokenizers, tmp_path, capsys):
    write_picture(tmp_path / "a.png")
    assert run("encode", tmp_path / "a.png", "--tokenizer", tokenizers[AutoencoderVP]) == 0
    with safe_open(tmp_path / "a.safetensors", "pt") as opened:
        codes, header = opened.get_tensor("codes"), opened.metadata() | DAMAGES[message]
    header = {name: value for name, value in header.items() if value is not None}
    save_file({"codes": codes}, tmp_path / "b.safetensors", metadata=header)
    assert run("decode", tmp_path / "b.safetensors") == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'b.safetensors'}" in error
    assert message in error
    assert error.count("\n") == 1


def test_damaged_codes_do_not_keep_others_from_being_decoded(tokenizers, tmp_path, capsys):
    write_picture(tmp_path / "a.png")
    assert run("encode", tmp_path / "a.png", "--tokenizer", tokenizers[AutoencoderVP]) == 0
    with safe_open(tmp_path / "a.safetensors", "pt") as opened:
        codes, header = opened.get_tensor("codes"), opened.metadata()
    save_file({"codes": codes.float()}, tmp_path / "0.safetensors", metadata=header)
    save_file({"codes": codes.long() + 240}, tmp_path / "1.safetensors", metadata=header)
    assert run("decode", tmp_path) == 1
    printed = capsys.readouterr()
    assert "skipped" in printed.out
    assert f"{tmp_path / '1.safetensors'}: codes must lie in 0..239" in printed.out
    assert "2 of 3 files could not be read, the first: " in printed.err
    assert (tmp_path / "a.decoded.png").exists()


def test_an_interruption_leaves_no_part_of_a_file(tokenizers, tmp_path, monkeypatch, capsys):
    write_picture(tmp_path / "a.png")

    def interrupted(*_, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    assert run("reconstruct", tmp_path / "a.png", "--tokenizer", tokenizers[AutoencoderVP]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
