import pytest
import torch
from torch.nn.functional import avg_pool2d, conv2d, interpolate

from vpvae_hf.models.tiling import apply_in_tiles


def channels_first(function):
    return lambda x: function(x.movedim(-1, 1)).movedim(1, -1)


@pytest.mark.parametrize("size", [(64, 64), (72, 100), (32, 200), (16, 48)])
def test_local_functions_come_out_exactly(size):
    images = torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(0))
    pool, enlarge = channels_first(lambda x: avg_pool2d(x, 4)), channels_first(lambda x: interpolate(x, scale_factor=2))
    pooled = apply_in_tiles(pool, images, tile=32, overlap=8, out_tile=8)
    torch.testing.assert_close(pooled, pool(images))
    enlarged = apply_in_tiles(enlarge, images, tile=32, overlap=8, out_tile=64)
    torch.testing.assert_close(enlarged, enlarge(images))


def test_seams_are_blended():
    """A blur that pads with zeros is wrong at every tile's edge; blending halves its greatest error, or better."""
    images = torch.ones(1, 96, 96, 1)
    kernel = torch.full((1, 1, 5, 5), 1 / 25)
    blur, error = channels_first(lambda x: conv2d(x, kernel, padding=2)), {}
    for overlap in (0, 16):
        blurred = apply_in_tiles(blur, images, tile=32, overlap=overlap, out_tile=32)
        error[overlap] = (blurred - 1)[:, 4:-4, 4:-4].abs().max()
    assert error[16] < error[0] / 2


def test_tiles_are_no_larger_than_asked():
    sizes = set()

    def record(tile):
        sizes.add(tuple(tile.shape[1:3]))
        return tile

    apply_in_tiles(record, torch.zeros(1, 70, 200, 1), tile=32, overlap=8, out_tile=32)
    assert sizes == {(32, 32)}
