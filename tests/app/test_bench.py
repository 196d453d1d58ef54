"""What the page's actions compute."""

import io

import numpy as np
import pytest
import soundfile
import torch
from audio_files import CORRUPT
from PIL import Image
from speech import speech

from tiny import FSP, GROUPED, HOP, RATE, VP, noise, noise_images, tiny_codec, tiny_vae
from vpvae_hf.app.images import ImageBench
from vpvae_hf.app.sounds import SoundBench
from vpvae_hf.cli.main import main
from vpvae_hf.data import read_codes

LIMIT = {"image": 512, "audio": 10}


def bench_of(model, modality, name="tokenizer"):
    return (ImageBench if modality == "image" else SoundBench)(model, name)


def several_sizes(modality):
    """A model with codebooks of 16 and 64 codes."""
    model = (tiny_vae if modality == "image" else tiny_codec)(VP)
    signals = noise_images(8) if modality == "image" else noise(2, 60 * HOP)
    latents = model.latent_vectors(signals).flatten(0, -2)
    model.set_codebooks([latents[:16], latents[16:80]])
    return model


@pytest.fixture
def bench(modality):
    return bench_of(several_sizes(modality), modality)


@pytest.fixture
def file(modality, tmp_path):
    if modality == "image":
        path = tmp_path / "own.png"
        values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(values).resize((58, 37), Image.Resampling.BICUBIC).save(path)
    else:
        path = tmp_path / "own.flac"
        soundfile.write(path, speech(0.9).numpy(), RATE)
    return str(path)


@pytest.fixture
def work(bench, file, modality):
    return bench.encode(bench.read(file, LIMIT[modality]), 64)


def shape_of(modality):
    return (1, 3, 37, 58) if modality == "image" else (1, 1, round(0.9 * RATE))


def test_a_signal_is_encoded_and_decoded_with_the_codebook_of_each_size(bench, work, modality):
    shares = []
    for size in (64, 16):
        work = bench.encode(work.source, size, progress=shares.append)
        bench.model.select_codebook(size)
        codes = bench.model.tokenize(work.source.signal)
        assert torch.equal(work.codes, codes[0])
        assert torch.equal(work.decoded, bench.modality.cut(bench.model.detokenize(codes), work.size))
        assert work.decoded.shape == shape_of(modality)
        assert bench.stored_bytes(work) == -(-codes.numel() * {16: 4, 64: 6}[size] // 8)
    assert shares[-1] == 1
    refined = bench.encode(work.source, 16, refine_steps=2, progress=shares.append)
    assert torch.equal(refined.codes, bench.model.tokenize(work.source.signal, refine_steps=2)[0])


def test_the_file_of_codes_is_that_of_vpvae_encode(modality, file, tmp_path):
    several_sizes(modality).save_pretrained(tmp_path / "tokenizer")
    model = type(several_sizes(modality)).from_pretrained(tmp_path / "tokenizer").eval()
    bench = bench_of(model, modality, str(tmp_path / "tokenizer"))
    work = bench.encode(bench.read(file, LIMIT[modality]), 64)
    (tmp_path / "page").mkdir()
    saved = bench.save(work, tmp_path / "page")
    command = ["encode", file, "--tokenizer", str(tmp_path / "tokenizer"), "--codebook-size", "64", "--pack"]
    assert main(command) == 0
    (codes, header), (others, other_header) = (read_codes(path) for path in (saved, tmp_path / "own.safetensors"))
    assert torch.equal(codes, others)
    assert header == other_header
    loaded = bench.load(str(saved))
    assert torch.equal(loaded.decoded, work.decoded)
    assert (loaded.codebook_size, loaded.source) == (64, None)


def test_codes_are_replaced_and_restored(bench, work):
    flat = work.codes.flatten()
    place = len(flat) // 2
    another = int((flat[place] + 1) % 64)
    here = bench.replace(work, place, another)
    assert (here.codes != work.codes).flatten().nonzero().tolist() == [[place]]
    assert here.codes.flatten()[place] == another
    assert here.replaced == 1
    everywhere = bench.replace(work, place, another, everywhere=True)
    assert torch.equal(everywhere.codes != work.codes, work.codes == flat[place])
    assert torch.equal(
        everywhere.decoded, bench.modality.cut(bench.model.detokenize(everywhere.codes[None]), work.size)
    )
    assert torch.equal(bench.restore(everywhere).decoded, work.decoded)
    with pytest.raises(ValueError, match=r"there is no code 64; codes lie in 0\.\.63"):
        bench.replace(work, place, 64)


def test_other_codecs(bench, work, modality):
    rows = bench.rows(work)
    assert [row.name.split(",")[0] for row in rows[1:]] == {"image": ["WebP", "PNG"], "audio": ["Opus", "FLAC"]}[
        modality
    ]
    assert rows[0].stored == bench.stored_bytes(work)
    assert {"image": {"PSNR", "SSIM"}, "audio": {"Mel distance"}}[modality] <= rows[0].quality.keys() & rows[
        1
    ].quality.keys()
    assert rows[-1].quality == {}
    if modality == "image":
        original = bench.shown(bench.modality.cut(work.source.signal, work.size))[0]
        sizes = []
        for quality in range(101):
            buffer = io.BytesIO()
            original.save(buffer, "webp", quality=quality, method=4)
            sizes.append(len(buffer.getvalue()))
        nearest = min(abs(size - rows[0].stored) for size in sizes)
        assert abs(rows[1].stored - rows[0].stored) == nearest
        assert rows[1].decoded.size == original.size


def test_the_map_tells_which_code_is_where(bench, work, modality):
    from vpvae_hf.app.charts import code_map

    flat = work.codes.flatten()
    chart = code_map(bench.places(work), flat[:, None], torch.rand(len(flat), 3), chosen=7)
    cell = chart.picture.shape[1] // chart.values.shape[1]
    columns = work.codes.shape[-1] if modality == "image" else 64
    for place in (0, 7, columns + 1, len(flat) - 1):
        x, y = (place % columns) * cell + cell - 1, (place // columns) * cell
        assert chart.at(x, y) == place
    assert chart.at(chart.picture.shape[1], 0) is None
    if modality == "audio":  # after the last code
        assert chart.at(chart.picture.shape[1] - 1, chart.picture.shape[0] - 1) is None


def test_the_sheet_has_each_code_once(bench, work):
    shares = []
    sheet = bench.sheet(work, shares.append)
    assert sorted(code for code in sheet.values.flatten().tolist() if code >= 0) == list(range(64))
    assert shares[-1] == 1
    assert np.array_equal(bench.sheet(work).picture, sheet.picture)


def test_large_codebooks_show_what_is_used_most(bench, work, monkeypatch, modality):
    module = {"image": "images", "audio": "sounds"}[modality]
    monkeypatch.setattr(f"vpvae_hf.app.{module}._MOST_ON_SHEET", 5)
    shown = [code for code in bench.sheet(work).values.flatten().tolist() if code >= 0]
    counts = work.codes.flatten().bincount(minlength=64)
    assert sorted(counts[shown].tolist()) == sorted(counts.tolist())[-5:]


def test_tokens_of_several_codes_are_shown_but_not_replaced(modality, file):
    model = (tiny_vae if modality == "image" else tiny_codec)(GROUPED)
    bench = bench_of(model, modality)
    work = bench.encode(bench.read(file, LIMIT[modality]), 5)
    assert work.codes.shape[-1] == 2
    assert bench.latents(work.codes, 5).shape == work.codes.shape
    density = {"image": "2 codes per 4 x 4 pixels", "audio": "333.3 codes per second"}
    assert bench.modality.resolution(bench.model) == density[modality]
    assert not bench.has_single_codes
    assert bench.sheet(work) is None
    assert bench.rows(work)[0].stored == -(-work.codes.numel() * 3 // 8)


def test_large_pictures_are_scaled_down(tmp_path):
    Image.new("RGB", (400, 300), "teal").save(tmp_path / "large.png")
    source = ImageBench(tiny_vae(FSP), "x").read(str(tmp_path / "large.png"), 64)
    assert dict(source.size) == {"height": 48, "width": 64}
    assert source.told.startswith("400 x 300 pixels, scaled down to 64 x 48")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_pictures_and_tokenizers_of_other_channels(mode, tmp_path):
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    bench = ImageBench(tiny_vae(FSP, in_channels=channels, out_channels=channels), "x")
    Image.new("LA", (40, 30), (90, 200)).save(tmp_path / "a.png")
    work = bench.encode(bench.read(str(tmp_path / "a.png"), 64), 36)
    assert bench.shown(work.decoded)[0].mode == mode
    assert bench.sheet(work).picture.shape[2] == 3
    assert bench.rows(work)[1].decoded.mode == mode


def test_long_and_silent_sounds_are_told(tmp_path):
    bench = SoundBench(tiny_codec(FSP), "x")
    soundfile.write(tmp_path / "silent.wav", np.zeros((2 * RATE, 2)), RATE)
    source = bench.read(str(tmp_path / "silent.wav"), 1)
    assert dict(source.size) == {"num_samples": RATE, "sampling_rate": RATE}
    assert source.told.startswith("2.00 s, only the first 1 s are used")
    assert "it is silent" in source.told
    work = bench.encode(source, 36)
    assert bench.rows(work)[0].stored > 0
    assert bench.compared(work).shape[2] == 3
    assert bench.samples(work.decoded)[1].shape == (RATE,)


def test_files_that_are_none_are_refused(bench, work, modality, tmp_path):
    other = bench_of((tiny_vae if modality == "image" else tiny_codec)(FSP), modality, "other")
    foreign = bench_of(*((tiny_codec(FSP), "audio") if modality == "image" else (tiny_vae(FSP), "image")))
    saved = bench.save(work, tmp_path)
    soundfile.write(tmp_path / "short.wav", np.zeros(20), RATE)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    (tmp_path / "corrupt.wav").write_bytes(CORRUPT)
    (tmp_path / "cut.safetensors").write_bytes(saved.read_bytes()[:-3])
    read = [("broken.png", "broken.png")] if modality == "image" else []
    read += [("corrupt.wav", "corrupt.wav"), ("short.wav", "short.wav: it is 1.2 ms long")] * (modality == "audio")
    for name, message in read:
        with pytest.raises(ValueError, match=message):
            bench.read(str(tmp_path / name), LIMIT[modality])
    items = bench.modality.items
    for loading, path, message in (
        (other, saved, "codebook was fitted anew, or is another"),
        (foreign, saved, f"own.safetensors holds codes of {items}, but this is a tokenizer of"),
        (bench, tmp_path / "cut.safetensors", "is damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            loading.load(str(path))


def test_codes_of_what_is_too_large_are_refused(bench, work, tmp_path, modality, monkeypatch):
    saved = bench.save(work, tmp_path)
    module, name = {"image": ("images", "_MOST_PIXELS"), "audio": ("sounds", "_MOST_SECONDS")}[modality]
    monkeypatch.setattr(f"vpvae_hf.app.{module}.{name}", 0.5)
    with pytest.raises(ValueError, match=r"of up to 0\.5"):
        bench.load(str(saved))
