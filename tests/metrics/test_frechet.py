"""The Fréchet distance between two sets."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from vpvae_hf.metrics import feature_moments, frechet_distance


def samples(count, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(7))
    return torch.randn(count, 6, generator=generator) @ mixing * scale + shift


def test_it_is_that_of_the_definition():
    first, second = samples(50, 0), samples(70, 1, scale=1.3, shift=0.5)
    means, covariances = zip(*((x.mean(0).numpy(), np.cov(x.double().numpy().T)) for x in (first, second)), strict=True)
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(feature_moments(first), feature_moments(second)) == pytest.approx(expected, rel=1e-5)


def test_moments_of_parts_add_up():
    whole, other = samples(60, 0), samples(60, 1, shift=1.0)
    parts = sum(feature_moments(part) for part in whole.split(17))
    moments = feature_moments(other)
    expected = frechet_distance(feature_moments(whole), moments)
    assert frechet_distance(parts, moments) == pytest.approx(expected)
    assert frechet_distance(moments, parts) == pytest.approx(expected)


def test_equal_sets_and_fewer_items_than_features():
    few = samples(4, 0)
    assert frechet_distance(feature_moments(few), feature_moments(few)) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(feature_moments(few), feature_moments(few + 2)) == pytest.approx(6 * 4, rel=1e-5)
    with pytest.raises(ValueError, match="needs at least 2 items, got 1"):
        frechet_distance(feature_moments(few[:1]), feature_moments(few))
