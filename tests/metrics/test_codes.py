import math

import pytest
import torch

from vpvae_hf.metrics import code_usage


@pytest.mark.parametrize("size", [1, 7, 1024])
def test_even_use_is_one(size):
    assert code_usage(torch.arange(size).repeat(3), size) == pytest.approx(1)


@pytest.mark.parametrize("code", [0, 41, 99])
def test_a_single_code_is_one_in_k(code):
    assert code_usage(torch.full((50,), code), 100) == pytest.approx(1 / 100)


def test_half_of_the_codes_used_evenly_is_a_half():
    assert code_usage(torch.arange(8).repeat(5), 16) == pytest.approx(0.5)


def test_mixed_use_by_hand():
    """Shares 1/2, 1/4, 1/4 of four codes: the entropy is 3/2 ln 2, so CVU = 2^1.5 / 4."""
    assert code_usage(torch.tensor([0, 0, 3, 1]), 4) == pytest.approx(2**1.5 / 4)
    shares = (0.7, 0.2, 0.1)
    expected = math.exp(-sum(share * math.log(share) for share in shares)) / 5
    assert code_usage(torch.tensor([4] * 7 + [2] * 2 + [0]), 5) == pytest.approx(expected)


def test_shape_and_order_do_not_matter():
    codes = torch.randint(32, (2, 6, 8), generator=torch.Generator().manual_seed(0))
    assert code_usage(codes, 32) == code_usage(codes.flatten().flip(0), 32)


def test_no_codes_raises():
    with pytest.raises(ValueError, match="code usage of no codes"):
        code_usage(torch.empty(0, dtype=torch.long), 8)
