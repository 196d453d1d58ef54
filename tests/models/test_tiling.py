import pytest
import torch
from torch.nn.functional import avg_pool2d, conv2d, interpolate

from vpvae_hf.models.tiling import apply_in_tiles


@pytest.mark.parametrize("size", [(64, 64), (72, 100), (32, 200), (16, 48)])
def test_local_functions_come_out_exactly(size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    pooled = apply_in_tiles(lambda x: avg_pool2d(x, 4), images, tile=32, overlap=8, out_tile=8)
    torch.testing.assert_close(pooled, avg_pool2d(images, 4))
    enlarged = apply_in_tiles(lambda x: interpolate(x, scale_factor=2), images, tile=32, overlap=8, out_tile=64)
    torch.testing.assert_close(enlarged, interpolate(images, scale_factor=2))


def test_seams_are_blended():
    """A blur that pads with zeros is wrong at every tile's edge; blending halves its greatest error, or better."""
    images = torch.ones(1, 1, 96, 96)
    kernel = torch.full((1, 1, 5, 5), 1 / 25)
    error = {}
    for overlap in (0, 16):
        made = apply_in_tiles(lambda x: conv2d(x, kernel, padding=2), images, tile=32, overlap=overlap, out_tile=32)
        error[overlap] = (made - 1)[..., 4:-4, 4:-4].abs().max()
    assert error[16] < error[0] / 2


def test_tiles_are_no_larger_than_asked():
    sizes = set()

    def record(tile):
        sizes.add(tuple(tile.shape[-2:]))
        return tile

    apply_in_tiles(record, torch.zeros(1, 1, 70, 200), tile=32, overlap=8, out_tile=32)
    assert sizes == {(32, 32)}
