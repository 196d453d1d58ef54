from itertools import islice

import numpy as np
import pytest
import torch

from vpvae_hf.data import center_crops, random_crops, to_pixel_values


def positions(height: int, width: int, name: int) -> np.ndarray:
    """An image whose channels are the row, the column and the image's name."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, name)], axis=-1).astype(np.uint8)


def read_back(batch: torch.Tensor) -> np.ndarray:
    """[B, S, S, 3] whole numbers from [B, 3, S, S] pixel values."""
    return ((batch + 1) * 127.5).round().int().movedim(1, -1).numpy()


@pytest.fixture
def images():
    return [positions(40, 56, 0), positions(100, 33, 1), positions(32, 32, 2)]


def test_pixel_values_span_minus_one_to_one():
    values = to_pixel_values(np.array([0, 51, 102, 255], dtype=np.uint8).reshape(1, 2, 2, 1).repeat(3, axis=3))
    assert values.shape == (1, 3, 2, 2)
    assert values.dtype == torch.float32
    assert values[0, 2].flatten().tolist() == pytest.approx([-1, -0.6, -0.2, 1])


@pytest.mark.parametrize("kind", ["read-only", "mirrored"])
def test_pixel_values_of_views(images, kind):
    image = images[0][None]
    if kind == "read-only":
        image.flags.writeable = False
    else:
        image = image[:, :, ::-1]
    np.testing.assert_array_equal(read_back(to_pixel_values(image)), image)


def test_random_crops_come_from_the_images(images):
    names, mirrored = [], []
    for batch in islice(random_crops(images, size=32, batch_size=8, seed=0), 25):
        assert batch.shape == (8, 3, 32, 32)
        assert batch.dtype == torch.float32
        assert batch.min() >= -1
        assert batch.max() <= 1
        for crop in read_back(batch):
            flip = crop[0, 0, 1] > crop[0, -1, 1]
            crop = crop[:, ::-1] if flip else crop
            top, left, name = crop[0, 0]
            np.testing.assert_array_equal(crop, images[name][top : top + 32, left : left + 32])
            names.append(name)
            mirrored.append(flip)
    assert 0.35 < np.mean(mirrored) < 0.65
    areas = np.array([image.shape[0] * image.shape[1] for image in images])
    np.testing.assert_allclose(np.bincount(names) / len(names), areas / areas.sum(), atol=0.1)


def test_random_crops_reach_every_position():
    crops = np.concatenate(
        [read_back(b) for b in islice(random_crops([positions(6, 7, 0)], size=4, batch_size=50, seed=0), 8)]
    )
    corners = {(int(crop[0, 0, 0]), int(crop[0, :, 1].min())) for crop in crops}
    assert corners == {(top, left) for top in range(3) for left in range(4)}


def test_random_crops_are_seeded(images):
    first, again, other = (
        torch.cat(list(islice(random_crops(images, size=16, batch_size=4, seed=seed), 3))) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:4], first[4:8])


@pytest.mark.parametrize("size", [5, 16, 32])
def test_center_crops_cover_each_grid_once(images, size):
    crops = np.concatenate([read_back(batch) for batch in center_crops(images, size=size, batch_size=7)])
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
    corners = [tuple(crop[0, 0, :2]) for batch in batches for crop in read_back(batch)]
    assert corners == sorted(corners)


def test_an_image_of_the_size_of_a_crop(images):
    (batch,) = center_crops(images[2:], size=32, batch_size=4)
    np.testing.assert_array_equal(read_back(batch), images[2][None])
    crop = read_back(next(random_crops(images[2:], size=32, batch_size=1, seed=0)))[0]
    assert np.array_equal(crop, images[2]) or np.array_equal(crop[:, ::-1], images[2])


def crop_random(images, size):
    return random_crops(images, size=size, batch_size=2, seed=0)


def crop_center(images, size):
    return center_crops(images, size=size, batch_size=2)


@pytest.mark.parametrize("crop", [crop_random, crop_center])
def test_too_small_an_image_raises(images, crop):
    with pytest.raises(ValueError, match="an image has a side of 32 pixels, crops need 33"):
        next(crop(images, 33))


@pytest.mark.parametrize("crop", [crop_random, crop_center])
def test_no_images_raises(crop):
    with pytest.raises(ValueError, match="no images to crop"):
        next(crop([], 8))
