import io
import logging

import numpy as np
import pytest
from PIL import Image

from vpvae_hf.data import load_images

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of its own for the `datasets` library."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def picture(height: int = 24, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, file_format)
    return buffer.getvalue()


def tiff_with_a_text_for_its_width() -> bytes:
    tiff = bytearray(encoded(picture(), "TIFF"))
    tiff[12] = 2  # type of the first entry
    return bytes(tiff)


CORRUPT = {
    "no image": b"<html>404</html>",
    "empty": b"",
    "cut off": encoded(picture())[:500],
    "nonsense in its header": tiff_with_a_text_for_its_width(),
    "missing": None,
}


def write_parquet(folder, files: list[bytes | None], split: str = "train", **images: list[bytes]) -> str:
    """A Parquet data set of a column of labels and the image column "photo"; `images` are further image columns."""
    columns = {"photo": files, **images}
    rows = {
        name: [None if file is None else {"bytes": file, "path": None} for file in column]
        for name, column in columns.items()
    }
    features = {"label": datasets.Value("int64"), **dict.fromkeys(columns, datasets.Image())}
    table = datasets.Dataset.from_dict({"label": list(range(len(files))), **rows}, features=datasets.Features(features))
    table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def test_images_come_in_order_and_the_column_is_found_by_its_type(tmp_path):
    pictures = [picture(seed=i) for i in range(3)]
    name = write_parquet(tmp_path, [encoded(p) for p in pictures])
    images = load_images(name, split="train", limit=10, shortest_side=24)
    assert len(images) == 3
    for image, original in zip(images, pictures, strict=True):
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, original)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_limit_counts_the_images_that_could_be_read(tmp_path, limit):
    files = [CORRUPT["no image"], *(encoded(picture(seed=i)) for i in range(4))]
    images = load_images(write_parquet(tmp_path, files), split="train", limit=limit, shortest_side=24)
    assert len(images) == limit
    np.testing.assert_array_equal(images[0], picture(seed=0))


@pytest.mark.parametrize(
    ("height", "width", "side", "shape"),
    [(24, 40, 12, (12, 20, 3)), (40, 24, 12, (20, 12, 3)), (24, 40, 48, (48, 80, 3)), (17, 100, 10, (10, 59, 3))],
)
def test_shortest_side(tmp_path, height, width, side, shape):
    name = write_parquet(tmp_path, [encoded(picture(height, width))])
    (image,) = load_images(name, split="train", limit=1, shortest_side=side)
    assert image.shape == shape


def test_scaling_keeps_what_is_shown(tmp_path):
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)
    (image,) = load_images(write_parquet(tmp_path, [encoded(ramp)]), split="train", limit=1, shortest_side=16)
    np.testing.assert_allclose(image, ramp[::2, ::2], atol=8)


@pytest.mark.parametrize("kind", CORRUPT)
def test_an_unreadable_image_is_skipped_and_counted(tmp_path, caplog, kind):
    name = write_parquet(tmp_path, [encoded(picture(seed=0)), CORRUPT[kind], encoded(picture(seed=1))])
    with caplog.at_level(logging.WARNING, logger="vpvae_hf"):
        images = load_images(name, split="train", limit=10, shortest_side=24)
    assert len(images) == 2
    np.testing.assert_array_equal(images[1], picture(seed=1))
    assert caplog.messages == [f"skipped 1 unreadable images of {name}"]


def test_readable_images_give_no_warning(tmp_path, caplog):
    load_images(write_parquet(tmp_path, [encoded(picture())]), split="train", limit=10, shortest_side=24)
    assert caplog.messages == []


def test_no_readable_image_raises(tmp_path):
    name = write_parquet(tmp_path, [CORRUPT["no image"]] * 2)
    with pytest.raises(ValueError, match="split 'train', column 'photo' holds no readable image"):
        load_images(name, split="train", limit=10, shortest_side=24)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    source = Image.fromarray(picture()).convert(mode)
    name = write_parquet(tmp_path, [encoded(source, "TIFF" if mode == "CMYK" else "PNG")])
    (image,) = load_images(name, split="train", limit=1, shortest_side=24)
    assert image.shape == (24, 40, 3)
    np.testing.assert_array_equal(image, np.asarray(source.convert("RGB")))


def test_grey_fills_all_channels(tmp_path):
    grey = picture()[..., 0]
    (image,) = load_images(write_parquet(tmp_path, [encoded(grey)]), split="train", limit=1, shortest_side=24)
    np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, axis=2))


def test_missing_split_is_named(tmp_path):
    write_parquet(tmp_path, [encoded(picture())], split="train")
    name = write_parquet(tmp_path, [encoded(picture(seed=1))], split="test")
    with pytest.raises(ValueError, match="has no split 'validation'; it has train, test"):
        load_images(name, split="validation", limit=1, shortest_side=24)
    (image,) = load_images(name, split="test", limit=1, shortest_side=24)
    np.testing.assert_array_equal(image, picture(seed=1))


def test_missing_column_is_named(tmp_path):
    name = write_parquet(tmp_path, [encoded(picture())])
    with pytest.raises(
        ValueError, match="has 1 image columns \\(photo\\) among label, photo; 'picture' is none of them"
    ):
        load_images(name, split="train", limit=1, shortest_side=24, column="picture")


def test_one_of_several_image_columns_must_be_named(tmp_path):
    name = write_parquet(tmp_path, [encoded(picture(seed=0))], mask=[encoded(picture(seed=1))])
    with pytest.raises(ValueError, match=r"has 2 image columns \(photo, mask\) among label, photo, mask; name the one"):
        load_images(name, split="train", limit=1, shortest_side=24)
    (image,) = load_images(name, split="train", limit=1, shortest_side=24, column="mask")
    np.testing.assert_array_equal(image, picture(seed=1))


def test_a_data_set_without_images_is_refused(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"has 0 image columns \(none\) among text"):
        load_images(str(tmp_path), split="train", limit=1, shortest_side=24)


def test_a_folder_of_files(tmp_path, caplog):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture(seed=i)))
    (tmp_path / "2.png").write_bytes(CORRUPT["cut off"])
    (tmp_path / "3.jpg").write_bytes(encoded(picture(30, 24), "JPEG"))
    images = load_images(str(tmp_path), split="train", limit=10, shortest_side=24)
    assert [image.shape for image in images] == [(24, 40, 3), (24, 40, 3), (30, 24, 3)]
    np.testing.assert_array_equal(images[1], picture(seed=1))
    assert caplog.messages == [f"skipped 1 unreadable images of {tmp_path}"]


def test_a_folder_of_classes(tmp_path):
    """The data set then has a column of labels beside the images."""
    for i, label in enumerate(("cat", "dog")):
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "a.png").write_bytes(encoded(picture(seed=i)))
    images = load_images(str(tmp_path), split="train", limit=10, shortest_side=24)
    assert len(images) == 2
    np.testing.assert_array_equal(images[0], picture(seed=0))


def test_sixteen_bits_of_grey_are_scaled(tmp_path):
    grey = np.linspace(0, 65535, 24 * 40).astype(np.uint16).reshape(24, 40)
    name = write_parquet(tmp_path, [encoded(grey)])
    (image,) = load_images(name, split="train", limit=1, shortest_side=24)
    np.testing.assert_array_equal(image[..., 0], grey // 257)


def test_orientation_is_applied(tmp_path):
    turned = Image.fromarray(picture(24, 40))
    exif = turned.getexif()
    exif[0x0112] = 6  # lies on its side
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    name = write_parquet(tmp_path, [buffer.getvalue()])
    (image,) = load_images(name, split="train", limit=1, shortest_side=24)
    np.testing.assert_array_equal(image, np.rot90(picture(24, 40), -1))


def test_a_limit_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="limit must be an integer of at least 1, got 0"):
        load_images(str(tmp_path), split="train", limit=0, shortest_side=24)
