import math

import pytest
import torch

from vpvae_hf.codebook import ScalarGrid, levels_for_codebook_size

LEVELS = [(2,), (7,), (2, 2), (5, 4, 3), (3, 4, 5), (8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5)]


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_cells_are_inverse(levels):
    grid = ScalarGrid(levels)
    codes = torch.arange(grid.codebook_size)
    cells = grid.to_cells(codes)
    assert grid.codebook_size == math.prod(levels)
    assert cells.shape == (grid.codebook_size, len(levels))
    assert cells.dtype == torch.int64
    assert (cells >= 0).all()
    assert (cells < torch.tensor(levels)).all()
    assert len(cells.unique(dim=0)) == grid.codebook_size
    assert torch.equal(grid.to_codes(cells), codes)


@pytest.mark.parametrize("levels", LEVELS)
def test_a_centroid_lies_in_the_middle_of_its_cell(levels):
    grid = ScalarGrid(levels)
    cells = grid.to_cells(torch.arange(grid.codebook_size))
    centroids = grid.centroids(cells)
    assert centroids.dtype == torch.float32
    assert torch.equal(grid.cells(centroids), cells)
    widths = 1 / torch.tensor(levels)
    for shift in (-0.49, 0.49):
        assert torch.equal(grid.cells(centroids + shift * widths), cells)


def test_the_first_dimension_counts_fastest():
    """Code = l_1 + 5 l_2 + 20 l_3 for levels (5, 4, 3)."""
    grid = ScalarGrid((5, 4, 3))
    cells = torch.tensor([[0, 0, 0], [4, 0, 0], [0, 1, 0], [0, 0, 1], [3, 2, 1], [4, 3, 2]])
    assert grid.to_codes(cells).tolist() == [0, 4, 5, 20, 33, 59]


def test_cells_at_the_borders():
    grid = ScalarGrid((4, 4, 4))
    unit = torch.tensor([[0.0, 1.0, 0.5], [0.25, 0.75, 1 - 2**-24], [-0.1, 1.1, -0.0]])
    assert grid.cells(unit).tolist() == [[0, 3, 2], [1, 3, 3], [0, 3, 0]]


@pytest.mark.parametrize(
    ("size", "levels", "product"),
    [(256, (8, 6, 5), 240), (1024, (8, 5, 5, 5), 1000), (4096, (7, 5, 5, 5, 5), 4375), (16384, (8, 8, 8, 6, 5), 15360)],
)
def test_published_levels(size, levels, product):
    assert levels_for_codebook_size(size) == levels
    assert levels_for_codebook_size(size, len(levels)) == levels
    assert math.prod(levels) == product


@pytest.mark.parametrize(
    ("size", "dim"),
    [(64, None), (100, None), (512, None), (2048, None), (65536, None), (1000, 3), (1024, 2), (4096, 3), (16384, 6)],
)
def test_other_sizes_and_dimensions_come_near(size, dim):
    levels = levels_for_codebook_size(size, dim)
    assert math.prod(levels) == pytest.approx(size, rel=0.03)
    assert min(levels) >= 2
    assert list(levels) == sorted(levels, reverse=True)
    assert dim in (None, len(levels))


@pytest.mark.parametrize(
    ("size", "dim", "levels"),
    [(2, None, (2,)), (5, None, (5,)), (7, 1, (7,)), (16, 4, (2, 2, 2, 2)), (64, 3, (4, 4, 4)), (7, 2, (3, 2))],
)
def test_levels_are_the_most_even_of_the_nearest(size, dim, levels):
    assert levels_for_codebook_size(size, dim) == levels


@pytest.mark.parametrize(("size", "dim", "least"), [(1, None, 2), (0, 1, 2), (7, 3, 8), (1024, 11, 2048)])
def test_too_small_a_codebook_raises(size, dim, least):
    with pytest.raises(ValueError, match=rf"codebook_size={size} is too small for latent_dim=\d+.* it is {least} or"):
        levels_for_codebook_size(size, dim)
