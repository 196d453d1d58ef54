"""Image files to arrays, crops of them, and images in memory."""

import contextlib
import io
import itertools
import logging
import re
import struct
import warnings
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import datasets
import numpy as np
import pytest
import torch
from audio_files import write_rows
from image_shards import bytes_of, encoded, loader_of, picture, write_shards
from PIL import Image, ImageFile

from vpvae_hf.data import (
    ImageCrop,
    UnreadableFileError,
    center_crops,
    load_images,
    load_photographs,
    random_crops,
    to_pixel_values,
)
from vpvae_hf.pixels import pixels_of_image, read_pixels

AUGMENTED = {"size": 8, "crop": "random", "flip": True, "shuffle_buffer": 4, "passes": None, "seed": 3}


def positions(height: int, width: int, name: int) -> np.ndarray:
    """An image whose channels are the row, the column and the image's name."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, name)], axis=-1).astype(np.uint8)


@pytest.fixture
def images():
    return [positions(40, 56, 0), positions(100, 33, 1), positions(32, 32, 2)]


def test_pixel_values_span_minus_one_to_one():
    values = to_pixel_values(np.array([0, 51, 102, 255], dtype=np.uint8).reshape(1, 2, 2, 1).repeat(3, axis=3))
    assert values.shape == (1, 3, 2, 2)
    assert values.dtype == torch.float32
    assert values[0, 2].flatten().tolist() == pytest.approx([-1, -0.6, -0.2, 1])
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pixel_values(every.view(1, 16, 16, 1)).flatten(), every.float() / 127.5 - 1)


def test_pixel_values_of_views(images):
    mirrored, read_only = images[0][None, :, ::-1], images[0][None]
    read_only.flags.writeable = False
    for image in (mirrored, read_only):
        np.testing.assert_array_equal(bytes_of(to_pixel_values(image)).numpy(), image)


def test_random_crops_come_from_the_images(images):
    names, mirrored = [], []
    for batch in islice(random_crops(images, size=32, batch_size=8, seed=0), 25):
        assert batch.shape == (8, 3, 32, 32)
        assert batch.dtype == torch.float32
        assert batch.min() >= -1
        assert batch.max() <= 1
        for crop in bytes_of(batch).numpy():
            flip = crop[0, 0, 1] > crop[0, -1, 1]
            crop = crop[:, ::-1] if flip else crop
            top, left, name = crop[0, 0]
            np.testing.assert_array_equal(crop, images[name][top : top + 32, left : left + 32])
            names.append(name)
            mirrored.append(flip)
    assert 0.35 < np.mean(mirrored) < 0.65
    areas = np.array([image.shape[0] * image.shape[1] for image in images])
    np.testing.assert_allclose(np.bincount(names) / len(names), areas / areas.sum(), atol=0.1)


def test_random_crops_are_seeded(images):
    first, again, other = (
        torch.cat(list(islice(random_crops(images, size=16, batch_size=4, seed=seed), 3))) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:4], first[4:8])


@pytest.mark.parametrize("size", [5, 16, 32])
def test_center_crops_cover_each_grid_once(images, size):
    crops = np.concatenate([bytes_of(batch).numpy() for batch in center_crops(images, size=size, batch_size=7)])
    expected = [(image.shape[0] // size) * (image.shape[1] // size) for image in images]
    assert np.bincount(crops[:, 0, 0, 2]).tolist() == expected
    for name, image in enumerate(images):
        seen = np.zeros(image.shape[:2], dtype=int)
        for crop in crops[crops[:, 0, 0, 2] == name]:
            top, left, _ = crop[0, 0]
            np.testing.assert_array_equal(crop, image[top : top + size, left : left + size])
            seen[top : top + size, left : left + size] += 1
        covered = np.argwhere(seen)
        assert seen.max() == 1
        for axis in (0, 1):
            before, after = covered[:, axis].min(), image.shape[axis] - 1 - covered[:, axis].max()
            assert 0 <= after - before <= 1
            assert before + after == image.shape[axis] % size
        assert seen.sum() == (covered.max(axis=0) - covered.min(axis=0) + 1).prod()


def test_center_crops_come_in_order_and_batches(images):
    batches = list(center_crops(images[:1], size=16, batch_size=4))
    assert [batch.shape for batch in batches] == [(4, 3, 16, 16), (2, 3, 16, 16)]
    corners = [tuple(crop[0, 0, :2]) for batch in batches for crop in bytes_of(batch).numpy()]
    assert corners == sorted(corners)


@pytest.mark.parametrize("crops", [partial(random_crops, seed=0), center_crops], ids=["random", "center"])
def test_images_that_cannot_be_cropped(images, crops):
    with pytest.raises(ValueError, match="an image has a side of 32 pixels, crops need 33"):
        crops(images, size=33, batch_size=2)
    with pytest.raises(ValueError, match="no images to crop"):
        crops([], size=8, batch_size=2)


@pytest.mark.parametrize(("height", "width", "top", "left"), [(12, 30, 0, 9), (31, 12, 9, 0), (15, 20, 1, 4)])
def test_the_center_of_an_image(tmp_path, height, width, top, left):
    name = write_shards(tmp_path, [[encoded(picture(7, height, width))]])
    (crop,) = bytes_of(next(iter(loader_of(name))))
    assert torch.equal(crop, torch.from_numpy(picture(7, height, width)[top : top + 12, left : left + 12].copy()))


def test_random_crops_reach_every_place_and_half_are_mirrored(tmp_path):
    name = write_shards(tmp_path, [[encoded(picture(7, 8, 11))]])
    crops = torch.cat(list(itertools.islice(loader_of(name, batch_size=50, **AUGMENTED), 5)))
    seen = Counter()
    for crop in bytes_of(crops):
        columns = crop[0, :, 2].tolist()
        mirrored = columns[0] > columns[-1]
        left = min(columns)
        assert columns == sorted(range(left, left + 8), reverse=mirrored)
        assert crop[:, 0, 1].tolist() == list(range(8))
        seen[left, mirrored] += 1
    assert set(seen) == set(itertools.product(range(4), (False, True)))
    assert min(seen.values()) > 12


def test_without_flip_none_is_mirrored(tmp_path):
    name = write_shards(tmp_path, [[encoded(picture(7, 8, 11))]])
    crops = torch.cat(list(itertools.islice(loader_of(name, **{**AUGMENTED, "flip": False}), 30)))
    assert (bytes_of(crops)[:, 0, 0, 2] < bytes_of(crops)[:, 0, 7, 2]).all()


@pytest.mark.parametrize("shortest_side", [None, 12])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_small_images_are_enlarged_to_the_crop(tmp_path, shortest_side, crop):
    name = write_shards(tmp_path, [[encoded(picture(7, 6, 9))]])
    (image,) = bytes_of(next(iter(loader_of(name, shortest_side=shortest_side, crop=crop))))
    assert image.shape == (12, 12, 3)
    assert (image[..., 0] == 7).all()
    assert (image[0, 0, 1], image[-1, 0, 1]) == (0, 5)


def test_large_images_are_scaled_where_that_is_asked(tmp_path):
    name = write_shards(tmp_path, [[encoded(picture(7, 24, 24))]])
    (whole,) = bytes_of(next(iter(loader_of(name, shortest_side=12))))
    (middle,) = bytes_of(next(iter(loader_of(name))))
    assert (whole[0, 0, 1] <= 1) & (whole[-1, 0, 1] >= 22)
    assert middle[:, 0, 1].tolist() == list(range(6, 18))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size must be an integer of at least 1, got 0"),
        ({"size": 12, "shortest_side": 32.0}, "shortest_side must be an integer of at least 1, or null, got 32.0"),
        ({"size": 12, "shortest_side": "32"}, "shortest_side must be an integer of at least 1, or null, got '32'"),
        ({"size": 12, "shortest_side": 11}, "shortest_side must be at least the size of a crop, 12, got 11"),
        ({"size": 12, "draft": True}, "draft is for images that are scaled down; give a shortest_side"),
    ],
)
def test_crops_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageCrop(**settings)


def noise(height: int = 24, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def file_of(image: Image.Image | np.ndarray, file_format: str = "PNG", **how) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, file_format, **how)
    return buffer.getvalue()


def tiff_with_a_text_for_its_width() -> bytes:
    tiff = bytearray(file_of(noise(), "TIFF"))
    tiff[12] = 2  # type of the first entry
    return bytes(tiff)


CORRUPT = {
    "no image": b"<html>404</html>",
    "empty": b"",
    "cut off": file_of(noise())[:500],
    "nonsense in its header": tiff_with_a_text_for_its_width(),
    "missing": None,
}


REASONS = {
    "no image": "it is no image, a damaged one, or of a format that Pillow does not read",
    "empty": "it is no image",
    "cut off": "image file is truncated",
    "nonsense in its header": "",
    "missing": "there is no file",
}


@pytest.fixture
def loaded(tmp_path_factory):
    """Loads files that it writes into a data set."""

    def load(*files: bytes | None, limit: int = 10, side: int = 24) -> list[np.ndarray]:
        name = write_rows(
            tmp_path_factory.mktemp("data") / "train.parquet",
            {"label": datasets.Value("int64"), "photo": datasets.Image()},
            [{"label": 0, "photo": None if file is None else {"bytes": file, "path": None}} for file in files],
        )
        return load_images(name, split="train", limit=limit, shortest_side=side)

    return load


@pytest.mark.parametrize("limit", [1, 2, 10])
def test_the_first_readable_images_come_in_order(loaded, limit):
    files = [CORRUPT["no image"], *(file_of(noise(seed=seed)) for seed in range(4))]
    images = loaded(*files, limit=limit)
    assert len(images) == min(limit, 4)
    for seed, image in enumerate(images):
        np.testing.assert_array_equal(image, noise(seed=seed), strict=True)


@pytest.mark.parametrize(
    ("height", "width", "side", "shape"),
    [(24, 40, 12, (12, 20, 3)), (40, 24, 12, (20, 12, 3)), (24, 40, 48, (48, 80, 3)), (17, 100, 10, (10, 59, 3))],
)
def test_shortest_side(loaded, height, width, side, shape):
    (image,) = loaded(file_of(noise(height, width)), side=side)
    assert image.shape == shape


@pytest.mark.parametrize("side", [31, 47, 48, 96, 200])
@pytest.mark.parametrize("turn", [None, 6])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_draft_is_nearly_the_same(file_format, turn, side):
    """Of 384 x 288 pixels; it is the same unless the image's sides are four times as long as those asked for."""
    rows, columns = np.mgrid[:288, :384] / 20
    colours = [np.sin(rows + columns), np.cos(rows - 2 * columns), np.sin(3 * rows)]
    exif = Image.Exif()
    if turn is not None:
        exif[0x0112] = turn
    image = Image.fromarray((np.stack(colours, axis=-1) * 100 + 128).astype(np.uint8))
    file = {"bytes": file_of(image, file_format, exif=exif), "path": None}
    rng = np.random.default_rng(0)
    whole, draft = (
        ImageCrop(size=30, shortest_side=side, draft=draft).read(file, rng).int() for draft in (False, True)
    )
    assert draft.shape == whole.shape == (30, 30, 3)
    assert (draft - whole).abs().float().mean() < 2
    assert torch.equal(draft, whole) == (side > 72)


@pytest.mark.parametrize(
    ("least_side", "decoded"), [(None, (90, 120)), (60, (90, 120)), (45, (45, 60)), (23, (45, 60)), (1, (12, 15))]
)
def test_a_draft_has_a_least_side(least_side, decoded):
    file = {"bytes": file_of(noise(90, 120), "JPEG"), "path": None}
    assert read_pixels(file, 3, least_side).shape == (*decoded, 3)


def test_scaling_keeps_what_is_shown(loaded):
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)
    (image,) = loaded(file_of(ramp), side=16)
    np.testing.assert_allclose(image, ramp[::2, ::2], atol=8)


@pytest.mark.parametrize("kind", CORRUPT)
def test_an_unreadable_image_is_skipped_and_counted(loaded, caplog, kind):
    with caplog.at_level(logging.WARNING, logger="vpvae_hf"):
        images = loaded(file_of(noise(seed=0)), CORRUPT[kind], file_of(noise(seed=1)))
    assert len(images) == 2
    np.testing.assert_array_equal(images[1], noise(seed=1))
    (message,) = caplog.messages
    assert re.match(rf"skipped 1 unreadable images of .*, the first: .*{REASONS[kind]}", message)


def test_no_images(loaded):
    with pytest.raises(ValueError, match="split 'train', column 'photo' holds no readable image"):
        loaded(CORRUPT["no image"], CORRUPT["no image"])
    with pytest.raises(ValueError, match="limit must be an integer of at least 1, got 0"):
        loaded(limit=0)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr", "HSV", "LAB"])
def test_every_mode_becomes_rgb(mode):
    source = Image.fromarray(noise()).convert(mode)
    np.testing.assert_array_equal(pixels_of_image(source), np.asarray(source.convert("RGB")))


RAMP = np.linspace(0, 1, 24 * 40).reshape(24, 40)
BYTES = np.rint(RAMP * 255).astype(np.uint8)
SHORTS = (RAMP * 65535).astype(np.uint16)


def tiff(values: np.ndarray, **tags: int) -> bytes:
    """A file of one strip of grey, with other tags than Pillow writes."""
    file = io.BytesIO()
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    bits, strip = tags.get("bits", values.itemsize * 8), tags.get("strip", values.tobytes())
    entries = [
        (256, 40),
        (257, 24),
        (258, bits),
        (259, 1),
        (262, tags.get("photometric", 1)),
        (273, 8 + 2 + 11 * 12 + 4),
    ]
    entries += [(277, 1), (278, 24), (279, len(strip)), (284, 1), (339, kind)]
    file.write(struct.pack("<2sHIH", b"II", 42, 8, len(entries)))
    for tag, value in entries:
        file.write(struct.pack("<HHII", tag, 4, 1, value))
    file.write(struct.pack("<I", 0) + strip)
    return file.getvalue()


def packed_12(values: np.ndarray) -> bytes:
    """Two values in three bytes."""
    first, second = values.reshape(-1, 2).astype(np.uint32).T
    joined = first << 12 | second
    return np.stack([joined >> 16, joined >> 8 & 255, joined & 255], axis=-1).astype(np.uint8).tobytes()


def with_transparent(image: Image.Image, colour: object) -> bytes:
    return file_of(image, transparency=colour)


WHITE_AT_7 = np.where(BYTES == 7, 255, BYTES)
# File -> grey that it shows.
DEPTHS = {
    "16-bit PNG": (file_of(SHORTS), SHORTS // 257),
    "16-bit TIFF": (file_of(SHORTS, "TIFF"), SHORTS // 257),
    "16-bit TIFF, big-endian": (file_of(Image.fromarray(SHORTS.astype(">u2")), "TIFF"), SHORTS // 257),
    "16-bit TIFF, white is zero": (tiff(SHORTS, photometric=0), 255 - SHORTS // 257),
    "16-bit PGM": (file_of(SHORTS, "PPM"), SHORTS // 257),
    "16-bit JPEG 2000": (file_of(SHORTS, "JPEG2000"), SHORTS // 257),
    "12-bit TIFF": (tiff(SHORTS, bits=12, strip=packed_12(SHORTS >> 4)), (SHORTS >> 4).astype(int) * 255 // 4095),
    "float TIFF": (file_of(RAMP.astype(np.float32), "TIFF"), BYTES),
    "float TIFF, white is zero": (tiff(RAMP.astype(np.float32), photometric=0), 255 - BYTES),
    "1-bit PNG": (file_of(Image.fromarray(BYTES > 100)), np.where(BYTES > 100, 255, 0)),
    "8-bit TIFF, white is zero": (tiff(BYTES, photometric=0), 255 - BYTES),
    "transparent grey": (with_transparent(Image.fromarray(BYTES), 7), WHITE_AT_7),
    "transparent 16-bit grey": (
        with_transparent(Image.fromarray(SHORTS), int(SHORTS[3, 4])),
        np.where(SHORTS[3, 4] == SHORTS, 255, SHORTS // 257),
    ),
    "transparent palette": (with_transparent(Image.fromarray(BYTES).convert("P"), 7), WHITE_AT_7),
    "half transparent palette": (
        with_transparent(Image.fromarray(BYTES).convert("P"), bytes([0] * 7 + [127] + [255] * 248)),
        np.where(BYTES < 7, 255, np.where(BYTES == 7, 131, BYTES)),
    ),
    "transparent GIF": (file_of(Image.fromarray(BYTES).convert("P"), "GIF", transparency=7), WHITE_AT_7),
    "transparent RGB": (with_transparent(Image.fromarray(BYTES).convert("RGB"), (7, 7, 7)), WHITE_AT_7),
    "alpha": (
        file_of(Image.fromarray(np.dstack([BYTES, BYTES]))),
        255 - BYTES.astype(int) + (BYTES.astype(int) ** 2 / 255),
    ),
    "first frame": (
        file_of(Image.fromarray(BYTES), "GIF", save_all=True, append_images=[Image.fromarray(255 - BYTES)]),
        BYTES,
    ),
    "first page": (
        file_of(Image.fromarray(BYTES), "TIFF", save_all=True, append_images=[Image.fromarray(255 - BYTES)]),
        BYTES,
    ),
}


@pytest.mark.parametrize("kind", DEPTHS)
def test_numbers_of_every_format_are_shown_at_their_scale(kind):
    file, expected = DEPTHS[kind]
    pixels = read_pixels({"bytes": file, "path": None})
    # One of 255 levels where alpha is rounded.
    np.testing.assert_allclose(
        pixels, np.repeat(expected[..., None], 3, axis=2), atol="alpha" in kind or "half" in kind
    )


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "PA", "LA", "La"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_transparency_lies_over_white_or_is_a_channel(mode, channels):
    """What lies under full transparency never shows."""
    alpha = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (24, 20)))
    source = Image.fromarray(BYTES)
    source = source.convert("P") if mode == "PA" else source if mode in ("LA", "La") else source.convert("RGB")
    source.putalpha(alpha)
    source = source.convert(mode) if source.mode != mode else source
    pixels = pixels_of_image(source, channels)
    assert pixels.shape == (24, 40, channels)
    np.testing.assert_array_equal(pixels[:, 1::2, 0], BYTES[:, 1::2])
    if channels == 4:
        np.testing.assert_array_equal(pixels[..., 3], np.asarray(alpha))
    else:
        assert (pixels[:, ::2] == 255).all()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (BYTES.astype(np.uint32), "integers of 32 bits, which do not define white; convert it to 8 or 16 bits"),
        (BYTES.astype(np.uint32) << 12, "integers of 32 bits"),
        *(
            (
                -BYTES.astype(kind),
                f"signed integers of {8 * np.dtype(kind).itemsize} bits, which do not define black",
            )
            for kind in (np.int8, np.int16, np.int32)
        ),
        (
            RAMP,
            "a TIFF of 1 x 64 bits, floating-point numbers, damaged or of a kind that Pillow does not read; convert",
        ),
        (RAMP.astype(np.float16), "a TIFF of 1 x 16 bits, floating-point"),
        (BYTES.astype(np.int64), "a TIFF of 1 x 64 bits, signed integers"),
        (
            (RAMP * 255).astype(np.float32),
            r"floating-point pixels must lie in 0..1, got 0..255; scale them, or convert",
        ),
        ((RAMP - 0.5).astype(np.float32), r"got -0.5..0.5"),
        ((RAMP * 1.02).astype(np.float32), r"got 0..1.02"),
        (np.full((24, 40), np.nan, dtype=np.float32), "got nan..nan"),
    ],
)
def test_numbers_that_do_not_tell_their_scale_are_refused(values, reason):
    with pytest.raises(UnreadableFileError, match=rf"scan.tif: .*{reason}"):
        read_pixels({"bytes": tiff(values), "path": "scan.tif"})


def damaged(file: bytes, rng: np.random.Generator) -> bytes:
    """The file with some bytes changed, most of them in its beginning, or cut off."""
    changed = bytearray(file)
    for place in rng.integers(min(len(file), rng.choice([60, 300, 10**6])), size=rng.choice([1, 1, 3, 10])):
        changed[place] = rng.choice([0, 255, rng.integers(256)])
    return bytes(changed[: rng.integers(len(file))] if rng.random() < 0.1 else changed)


FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")


@pytest.mark.parametrize("file_format", FORMATS)
def test_damaged_files_are_read_or_unreadable(file_format):
    Image.init()
    if file_format not in Image.SAVE:
        pytest.skip("Pillow")
    file, rng = file_of(noise(16, 20), file_format), np.random.default_rng(0)
    for _ in range(60):
        with contextlib.suppress(UnreadableFileError):
            read_pixels({"bytes": damaged(file, rng), "path": None})


class Faulty(ImageFile.ImageFile):
    """A plugin of Pillow whose files name the error that decoding them raises."""

    format = "FAULTY"
    error: BaseException

    def _open(self) -> None:
        self._mode, self._size = "RGB", (8, 8)

    def load(self) -> None:
        raise self.error


@pytest.fixture
def faulty(monkeypatch):
    monkeypatch.setattr(Image, "ID", [*Image.ID, "FAULTY"])
    monkeypatch.setitem(Image.OPEN, "FAULTY", (Faulty, lambda start: start.startswith(b"FAULTY")))

    def read(error: BaseException) -> None:
        monkeypatch.setattr(Faulty, "error", error, raising=False)
        read_pixels({"bytes": b"FAULTY", "path": "a.faulty"})

    return read


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("bad box"), NotImplementedError(), struct.error("unpack"), IndexError(), KeyError(7), EOFError(),
        zlib.error("incorrect header"), OverflowError(), AttributeError("tag"), RecursionError(), MemoryError(),
        AssertionError(), ZeroDivisionError(), StopIteration(), ImportError("no codec"), Warning("damaged"),
        Image.DecompressionBombError("large"),
    ],
    ids=repr,
)  # fmt: skip
def test_whatever_a_decoder_raises_makes_a_file_unreadable(faulty, error):
    told = str(error) if isinstance(error, OSError | ValueError) else type(error).__name__
    with pytest.raises(UnreadableFileError, match=rf"a.faulty: .*({told}|Pillow lacks)"):
        faulty(error)


def test_what_is_no_fault_of_a_file_passes(faulty):
    with pytest.raises(KeyboardInterrupt):
        faulty(KeyboardInterrupt())
    with pytest.raises(ImportError, match="s3fs"):
        read_pixels({"bytes": None, "path": "s3://bucket/a.png"})


TURNED = np.rot90(noise(24, 40), -1)


@pytest.mark.parametrize(
    ("exif", "expected"),
    [
        (b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0", TURNED),
        (b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0", TURNED),  # ends too soon
        (b"Exif\0\0II*\0\xff\xff\xff\x7f\x01\0", noise(24, 40)),
        (b"Exif\0\0nonsense", noise(24, 40)),
        (b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x09\0\0\0\x20", noise(24, 40)),
    ],
    ids=["whole", "cut off", "beyond its end", "nonsense", "text"],
)
@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_damaged_metadata_cost_no_image(exif, expected, file_format):
    """They cause no warning either, since warnings are errors here."""
    file = file_of(noise(24, 40), file_format, exif=exif, **({"lossless": True} if file_format == "WEBP" else {}))
    np.testing.assert_array_equal(read_pixels({"bytes": file, "path": None}), expected)


def chunk(kind: bytes, content: bytes, check: int | None = None) -> bytes:
    """A chunk of a PNG; its checksum is right unless another is given."""
    check = zlib.crc32(kind + content) if check is None else check
    return struct.pack(">I4s", len(content), kind) + content + struct.pack(">I", check)


def with_tag(file: bytes, tag: int, kind: int, pointer: int) -> bytes:
    """A TIFF whose directory has one more entry."""
    start = struct.unpack_from("<I", file, 4)[0]
    number = struct.unpack_from("<H", file, start)[0]
    tags = [file[start + 2 + 12 * each : start + 14 + 12 * each] for each in range(number)]
    tags = sorted(
        [*tags, struct.pack("<HHII", tag, kind, 20, pointer)], key=lambda entry: struct.unpack("<H", entry[:2])
    )
    directory = struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)
    return file[:4] + struct.pack("<I", len(file)) + file[8:] + directory


PNG, JPEG, LZW = file_of(noise()), file_of(noise(), "JPEG"), file_of(noise(), "TIFF", compression="tiff_lzw")
WEBP = file_of(noise(), "WEBP", lossless=True, exif=b"Exif\0\0II*\0", xmp=b"<xmp>")
MANY = zlib.compress(bytes(2 << 20))
IN_PNG = {
    "large text": chunk(b"zTXt", b"prompt\0\0" + MANY),
    "large international text": chunk(b"iTXt", b"prompt\0\1\0\0\0" + MANY),
    "large profile": chunk(b"iCCP", b"sRGB\0\0" + MANY),
    "short profile": chunk(b"iCCP", b""),
    "short gamma": chunk(b"gAMA", b"1"),
    "short animation": chunk(b"acTL", b"1"),
    **{f"wrong sum of {kind}": chunk(kind.encode(), b"k\0value", 1) for kind in ("tEXt", "tIME", "eXIf", "prVt")},
}
IN_JPEG = {
    "short JFIF": b"\xff\xe0\0\7JFIF\0",
    "short profile": b"\xff\xe2\0\x0eICC_PROFILE\0",
    "short Adobe": b"\xff\xee\0\7Adobe",
}
DAMAGED_METADATA = {
    **{f"PNG, {what}": (PNG[:33] + extra + PNG[33:], PNG) for what, extra in IN_PNG.items()},
    **{f"PNG, {what} at its end": (PNG[:-12] + extra + PNG[-12:], PNG) for what, extra in IN_PNG.items()},
    "PNG, chunk beyond its end": (PNG[:-12] + struct.pack(">I", 1 << 20) + b"tEXt", PNG),
    **{f"JPEG, {what}": (JPEG[:2] + extra + JPEG[2:], JPEG) for what, extra in IN_JPEG.items()},
    "JPEG without end": (JPEG[:-2], JPEG),
    "JPEG with half its end": (JPEG[:-1], JPEG),
    "WebP, cut off XMP": (WEBP[:-3], WEBP),
    "WebP, cut off EXIF": (WEBP[: WEBP.index(b"EXIF") + 10], WEBP),
    "TIFF, text beyond its end": (with_tag(LZW, 271, 2, 1 << 30), LZW),
    "TIFF, directory of interoperability": (with_tag(LZW, 0xA005, 4, 0), LZW),
    "TIFF, XMP of another type": (with_tag(LZW, 700, 2, 8), LZW),
}


@pytest.mark.parametrize("kind", DAMAGED_METADATA)
def test_metadata_that_stop_pillow_cost_no_image(kind):
    file, sound = DAMAGED_METADATA[kind]
    np.testing.assert_array_equal(*(read_pixels({"bytes": each, "path": None}) for each in (file, sound)))


def test_intact_orientation_and_transparency_outlive_other_metadata():
    broken = chunk(b"tEXt", b"k\0value", 1)
    for settings in ({"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"},
                     {"transparency": tuple(noise()[3, 4].tolist())}):  # fmt: skip
        file = file_of(noise(), **settings)
        pixels = read_pixels({"bytes": file, "path": None}, 4)
        assert not np.array_equal(pixels, read_pixels({"bytes": PNG, "path": None}, 4))
        np.testing.assert_array_equal(read_pixels({"bytes": file[:33] + broken + file[33:], "path": None}, 4), pixels)


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_a_jpeg_that_lacks_pixels_is_unreadable(settings):
    file = file_of(noise(), "JPEG", **settings)
    scans = [place for place in range(len(file)) if file[place : place + 2] in (b"\xff\xda", b"\xff\xc4", b"\xff\xd0")]
    for end in {*scans, *range(scans[0] + 40, len(file) - 3, 37), len(file) - 4}:
        with pytest.raises(UnreadableFileError):
            read_pixels({"bytes": file[:end], "path": None})


def test_large_images_are_read_up_to_pillows_limit(monkeypatch):
    file, filters = {"bytes": file_of(noise()), "path": None}, list(warnings.filters)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow warns above this, and fails above twice this
    with ThreadPoolExecutor(4) as threads:
        for pixels in threads.map(read_pixels, [file] * 40):
            np.testing.assert_array_equal(pixels, noise())
    assert warnings.filters == filters
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(UnreadableFileError, match="exceeds limit of 800 pixels"):
        read_pixels(file)


@pytest.mark.parametrize("channels", [1, 4])
def test_crops_of_other_channels(channels):
    file = {"bytes": file_of(noise()), "path": None}
    crop = ImageCrop(size=12, shortest_side=16, flip=True, channels=channels).read(file, np.random.default_rng(1))
    assert crop.shape == (12, 12, channels)
    with pytest.raises(ValueError, match="channels must be one of 1, 3, 4, got 2"):
        ImageCrop(size=12, channels=2)


def test_orientation_is_applied(loaded):
    turned = Image.fromarray(noise(24, 40))
    exif = turned.getexif()
    exif[0x0112] = 6  # lies on its side
    (image,) = loaded(file_of(turned, exif=exif))
    np.testing.assert_array_equal(image, np.rot90(noise(24, 40), -1))


def test_a_folder_of_files_of_classes(tmp_path):
    """The data set then has a column of labels beside the images."""
    for label, file in {"cat": file_of(noise(seed=0)), "dog": file_of(noise(30, 24), "JPEG")}.items():
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "a.image.jpg").write_bytes(file)
    images = load_images(str(tmp_path), split="train", limit=10, shortest_side=24)
    assert [image.shape for image in images] == [(24, 40, 3), (30, 24, 3)]
    np.testing.assert_array_equal(images[0], noise(seed=0))


def test_twelve_different_photographs_in_two_parts():
    from skimage import data

    photographs = load_photographs()
    for part in photographs:
        assert len({image.tobytes() for image in part}) == len(part) == 12
        assert min(image.std() for image in part) > 5
        assert all(image.dtype == np.uint8 and image.shape[2:] == (3,) and min(image.shape[:2]) >= 64 for image in part)
    for training, held_out in zip(*photographs, strict=True):
        assert training.shape[1] == (training.shape[1] + held_out.shape[1]) * 3 // 4
    np.testing.assert_array_equal(np.concatenate([part[0] for part in photographs], axis=1), data.astronaut())
