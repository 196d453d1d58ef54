import numpy as np
import pytest

from vpvae_hf.data import load_photographs


@pytest.fixture(scope="module")
def photographs():
    return load_photographs()


def test_twelve_photographs_in_two_parts(photographs):
    for part in photographs:
        assert len(part) == 12
        for image in part:
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
            assert min(image.shape[:2]) >= 64


def test_training_is_the_left_three_quarters(photographs):
    for training, held_out in zip(*photographs, strict=True):
        width = training.shape[1] + held_out.shape[1]
        assert training.shape[0] == held_out.shape[0]
        assert training.shape[1] == width * 3 // 4


def test_parts_are_disjoint_and_complete(photographs):
    from skimage import data
    from sklearn.datasets import load_sample_image

    joined = [np.concatenate(parts, axis=1) for parts in zip(*photographs, strict=True)]
    np.testing.assert_array_equal(joined[0], data.astronaut())
    np.testing.assert_array_equal(joined[-1], load_sample_image("flower.jpg"))
    for training, held_out in zip(*photographs, strict=True):
        assert not np.shares_memory(training, held_out)


def test_photographs_differ_and_show_something(photographs):
    for part in photographs:
        assert len({image.tobytes() for image in part}) == 12
        assert min(image.std() for image in part) > 5
