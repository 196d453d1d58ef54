"""The image processor: whole images, its inputs, its choices, and the same pixels as training and the commands."""

import json
import re
from collections import deque

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessorPil

from tiny import FACTOR, FSP, tiny_vae
from vpvae_hf import VPImageProcessor
from vpvae_hf.data import ImageCrop, UnreadableFileError

HEIGHT, WIDTH = 37, 50
PIXELS = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@pytest.fixture
def processor():
    return VPImageProcessor(multiple=FACTOR)


def pixels_of(pixel_values) -> np.ndarray:
    """[B, H, W, C] uint8."""
    return ((torch.as_tensor(pixel_values) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy()


def test_the_whole_image_is_kept_and_can_be_cut_out_again(processor):
    batch = processor(Image.fromarray(PIXELS), return_tensors="pt")
    assert batch.pixel_values.shape == (1, 3, 40, 52)
    assert batch.pixel_values.dtype == torch.float32
    assert batch.original_sizes.tolist() == [[HEIGHT, WIDTH]]
    expected = np.pad(PIXELS, [(0, 3), (0, 2), (0, 0)], mode="edge")
    np.testing.assert_array_equal(pixels_of(batch.pixel_values)[0], expected)
    (image,) = processor.post_process(**batch)
    np.testing.assert_array_equal(np.asarray(image), PIXELS)
    assert processor.post_process(batch.pixel_values)[0].size == (52, 40)


@pytest.mark.parametrize("channels", MODES)
def test_it_comes_with_the_model(channels, tmp_path):
    vae = tiny_vae(FSP, in_channels=channels, out_channels=channels)
    vae.save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is VPImageProcessor
    assert processor.model_input_names == ["pixel_values"]
    batch = processor(images=Image.fromarray(PIXELS), return_tensors="pt")
    codes = vae.tokenize(**batch)
    assert codes.shape == (1, 10, 13)
    assert torch.equal(vae.latent_vectors(**batch), vae.latent_vectors(batch.pixel_values))
    (image,) = processor.post_process(vae.detokenize(codes), batch.original_sizes)
    assert (image.mode, image.size) == (MODES[channels], (WIDTH, HEIGHT))


def test_settings_are_saved_and_can_be_changed_at_loading(tmp_path):
    VPImageProcessor(channels=1, multiple=8, to_multiple="crop", shortest_side=30, crop_size=20).save_pretrained(
        tmp_path
    )
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved == {
        "channels": 1, "crop_size": 20, "image_processor_type": "VPImageProcessor", "multiple": 8, "shortest_side": 30,
        "to_multiple": "crop",
    }  # fmt: skip
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == saved
    assert AutoImageProcessor.from_pretrained(tmp_path, crop_size=24).crop_size == 24


def test_folders_saved_with_clips_processor_load_as_before(tmp_path):
    half = [0.5] * 3
    old = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32, image_mean=half, image_std=half)
    old.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is CLIPImageProcessorPil
    assert loaded(Image.fromarray(PIXELS), return_tensors="pt").pixel_values.shape == (1, 3, 32, 32)


@pytest.fixture
def files(tmp_path):
    """Name -> path of an image file; each reads differently if a step of reading is left out."""
    turned = Image.fromarray(PIXELS)
    exif = turned.getexif()
    exif[0x0112] = 6  # lies on its side
    alpha = Image.fromarray(PIXELS)
    alpha.putalpha(Image.fromarray(PIXELS[..., 0]))
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 256)
    images = {"turned.jpg": turned, "alpha.png": alpha, "deep.png": deep, "grey.png": deep.convert("L")}
    for name, image in images.items():
        image.save(tmp_path / name, **({"exif": exif} if image is turned else {}))
    return {name: tmp_path / name for name in images}


@pytest.mark.parametrize("channels", MODES)
@pytest.mark.parametrize(("size", "side"), [(32, 32), (32, 35), (32, None), (48, None)])
def test_it_reads_files_as_training_and_the_commands_do(files, channels, size, side):
    vae = tiny_vae(in_channels=channels, out_channels=channels)
    crop = ImageCrop(size=size, shortest_side=side, channels=channels)
    read = [crop.read({"bytes": None, "path": str(path)}, np.random.default_rng(0)) for path in files.values()]
    expected = crop.model_input(crop.collate(read))
    batch = vae.preprocessor()(list(files.values()), crop_size=size, shortest_side=side, return_tensors="pt")
    assert torch.equal(batch.pixel_values, expected)
    assert torch.equal(vae.tokenize(**batch), vae.tokenize(expected))
    assert torch.equal(vae.preprocessor()([*map(Image.open, files.values())], crop_size=size, shortest_side=side,
                                          return_tensors="pt").pixel_values, expected)  # fmt: skip


DEEP = PIXELS.astype(np.uint16) * 257
COLUMN = datasets.Dataset.from_dict(
    {"image": [Image.fromarray(PIXELS)]}, features=datasets.Features({"image": datasets.Image()})
)
SAME = {
    "an image": lambda path: Image.fromarray(PIXELS),
    "a path": lambda path: path,
    "a path as text": str,
    "[H, W, C]": lambda path: PIXELS,
    "[C, H, W]": lambda path: PIXELS.transpose(2, 0, 1),
    "[B, H, W, C]": lambda path: PIXELS[None],
    "a tensor": lambda path: torch.from_numpy(PIXELS).movedim(-1, 0),
    "a batch of tensors": lambda path: torch.from_numpy(PIXELS).movedim(-1, 0)[None],
    "16 bits": lambda path: DEEP,
    "16 bits, big-endian": lambda path: DEEP.astype(">u2"),
    "floating point": lambda path: PIXELS / 255,
    "half precision": lambda path: torch.from_numpy(PIXELS / 255).half(),
    "opaque": lambda path: np.dstack([PIXELS, np.full((HEIGHT, WIDTH), 255, np.uint8)]),
    "bfloat16": lambda path: torch.from_numpy(PIXELS / 255).bfloat16(),
    "a list": lambda path: [PIXELS],
    "a deque": lambda path: deque([PIXELS]),
    "an array of objects": lambda path: np.array([path, None], dtype=object)[:1],
    "a column": lambda path: COLUMN["image"],
    "a column of tensors": lambda path: COLUMN.with_format("torch")["image"],
    "a tuple": lambda path: (Image.fromarray(PIXELS),),
}


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
def test_inputs_of_every_kind(processor, tmp_path, kind, return_tensors):
    Image.fromarray(PIXELS).save(tmp_path / "image.png")
    batch = processor(SAME[kind](tmp_path / "image.png"), to_multiple="crop", return_tensors=return_tensors)
    assert len(batch.pixel_values) == 1
    pixels = pixels_of(np.stack(batch.pixel_values))[0]
    np.testing.assert_allclose(pixels, PIXELS[:36, 1:49].astype(int), atol=kind == "bfloat16")  # it holds 8 bits


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.array, torch.tensor])
def test_sides_may_be_integers_of_numpy_and_torch(processor, kind, tmp_path):
    values = processor(PIXELS, crop_size=kind(16), shortest_side=kind(20), return_tensors="np").pixel_values
    assert values.shape == (1, 3, 16, 16)
    VPImageProcessor(crop_size=kind(16), multiple=kind(4)).save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path).crop_size == 16


VALUES = torch.zeros(2, 3, 40, 52)


@pytest.mark.parametrize(
    ("values", "sizes", "message"),
    [
        (VALUES[0], None, r"pixel values must be \[B, C, H, W\], got shape \(3, 40, 52\); give one image as x\[None\]"),
        ([VALUES], None, r"must be \[C, H, W\]"),
        (VALUES.movedim(1, -1), None, "the number of channels C must be 1 to 4, got 40"),
        (VALUES[:0], None, "the batch is empty"),
        (VALUES.byte(), None, "must be floating point, got torch.uint8"),
        (VALUES * torch.nan, None, "12480 of 12480 pixel values are NaN or infinite"),
        (VALUES, [[37, 50]], r"original_sizes must be integers \[2, 2\], .* of shape \(1, 2\)"),
        (VALUES, [37, 50], r"of shape \(2,\)"),
        (VALUES, torch.ones(2, 2), "got torch.float32 of"),
        (
            VALUES,
            [[37, 50], [400, 50]],
            "an original size of 400 x 50 does not lie within an image of 40 x 52; give the",
        ),
        (VALUES, [[37, 50], [0, 50]], "an original size of 0 x 50"),
    ],
)
def test_what_cannot_be_an_image_again(processor, values, sizes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        processor.post_process(values, sizes)


GREY = PIXELS[..., 0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (GREY, GREY),
        (GREY[..., None], GREY),
        (GREY[None], GREY),
        (GREY > 100, (GREY > 100) * 255),
        (np.dstack([GREY, np.zeros_like(GREY)]), np.full_like(GREY, 255)),  # transparent: the white behind it
        (PIXELS, np.asarray(Image.fromarray(PIXELS).convert("L"))),
    ],
)
def test_grey(given, expected):
    pixels = pixels_of(VPImageProcessor(channels=1)(given, return_tensors="pt").pixel_values)
    np.testing.assert_array_equal(pixels[0, ..., 0], expected)


OF_TWO_SIZES = [PIXELS, PIXELS[:20]]


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (OF_TWO_SIZES, {}, "images of one batch must have one size, got 20 x 52, 40 x 52; give shortest_side and crop"),
        ([], {}, "there must be at least one image, got none"),
        (PIXELS[:, :, [0] * 5], {}, r"an image must be \[H, W\].* of 1 to 4 channels, got \[37, 50, 5\]"),
        (PIXELS[:0], {}, r"got \[0, 50, 3\]"),
        (PIXELS[:3], {}, r"an image of shape \[3, 50, 3\] may be \[H, W, C\] or \[C, H, W\]; give a PIL image"),
        (PIXELS.astype(np.int64), {}, "pixels of type int64 do not define white; convert them to uint8"),
        (PIXELS.astype(np.float32), {}, r"floating-point pixels must lie in 0..1, got 0..255; scale them"),
        (PIXELS / 127.5 - 1, {}, r"must lie in 0..1, got -1..1"),
        (np.full((8, 8), np.nan), {}, "must lie in 0..1, got nan..nan"),
        (PIXELS, {"do_resize": False}, "unknown argument 'do_resize'; valid: shortest_side, crop_size, to_multiple"),
        *(
            (PIXELS, {name: side}, f"{name} must be an integer of at least 1, or null, got {re.escape(repr(side))}")
            for name in ("crop_size", "shortest_side")
            for side in ({"height": 32, "width": 32}, {"shortest_edge": 32}, "32", 32.0, (32, 32), True, 0)
        ),
        (PIXELS, {"crop_size": 8, "shortest_side": 7}, "shortest_side must be at least the size of a crop, 8, got 7"),
        (PIXELS, {"to_multiple": "fill"}, "to_multiple must be 'pad' or 'crop', got 'fill'"),
        (PIXELS[:3, :, 0], {"to_multiple": "crop"}, "an image of 3 x 50 pixels has no crop whose sides are multiples"),
    ],
)
def test_what_is_refused(processor, images, settings, message):
    with pytest.raises(ValueError, match=message):
        processor(images, return_tensors="pt", **settings)


def test_images_of_several_sizes_make_lists_and_one_batch_once_they_are_cut(processor):
    batch = processor(OF_TWO_SIZES)
    assert [values.shape for values in batch.pixel_values] == [(3, 40, 52), (3, 20, 52)]
    for image, pixels in zip(processor.post_process(**batch), OF_TWO_SIZES, strict=True):
        np.testing.assert_array_equal(np.asarray(image), pixels)
    assert processor(OF_TWO_SIZES, crop_size=16, return_tensors="np").pixel_values.shape == (2, 3, 16, 16)


def test_files_that_are_no_images(processor, tmp_path):
    (tmp_path / "page.png").write_bytes(b"<html>404</html>")
    with pytest.raises(UnreadableFileError, match=r"page.png: it is no image"):
        processor(tmp_path / "page.png")
    with pytest.raises(UnreadableFileError, match=r"127.0.0.1:9/a.png: FileNotFoundError, Cannot connect to host"):
        processor("http://127.0.0.1:9/a.png")
    with pytest.raises(TypeError, match="an image must be a PIL image, a path, an array or a tensor, got dict"):
        processor({"bytes": b""})
    with pytest.raises(ValueError, match="in_channels=2 and out_channels=2"):
        VPImageProcessor(channels=2)(PIXELS)
