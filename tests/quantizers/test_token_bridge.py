"""TokenBridge: a normal posterior in training, bins of equal mass after it."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vpvae_hf import build_quantizer


@pytest.fixture
def quantizer():
    return build_quantizer({"kind": "token_bridge", "codebook_size": 4, "latent_dim": 3, "kl_weight": 0.5})


def test_bins_of_a_normal_latent_are_used_equally(quantizer):
    latents = torch.randn(40_000, 3, generator=torch.Generator().manual_seed(0))
    codes = quantizer.eval().encode(latents)
    shares = torch.stack([torch.bincount(column, minlength=4) for column in codes.T]) / len(latents)
    # The standard error of a share of 1/4 among 40,000 is 0.0022; five of them.
    torch.testing.assert_close(shares, torch.full((3, 4), 0.25), atol=0.011, rtol=0)


def test_a_bin_stands_for_its_mean(quantizer):
    latents = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0))
    codes = quantizer.eval().encode(latents)
    centroids = quantizer.decode(torch.arange(4)[:, None].expand(4, 3))[:, 0]
    for code in range(4):
        # Within a bin the deviation is at most 0.5, so the mean of 150,000 is off by 0.0013; five of them.
        assert latents[codes == code].mean() == pytest.approx(float(centroids[code]), abs=0.0065)


def test_loss_is_the_divergence_from_a_standard_normal(quantizer):
    mean, log_variance = torch.randn(50, 3), torch.randn(50, 3)
    output = quantizer.train()(torch.cat([mean, log_variance], dim=-1))
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(dim=-1).mean()
    torch.testing.assert_close(output.loss, 0.5 * expected)


def test_training_samples_the_posterior(quantizer):
    features = torch.tensor([1.0, -2.0, 0.0, -1.0, 0.0, 1.0]).expand(50_000, 6)
    latents = quantizer.train()(features, generator=torch.Generator().manual_seed(0)).latents
    deviation = (features[0, 3:] / 2).exp()
    torch.testing.assert_close(latents.mean(dim=0), features[0, :3], atol=0.04, rtol=0)  # 5 standard errors of 0.0074
    torch.testing.assert_close(latents.std(dim=0), deviation, atol=0, rtol=0.016)  # 5 of 0.32%


def test_extreme_variances_stay_finite(quantizer):
    features = torch.tensor([0.0, 0.0, 0.0, 1e4, -1e4, 0.0]).requires_grad_()
    output = quantizer.train()(features)
    output.loss.backward()
    assert torch.isfinite(output.latents).all()
    assert torch.isfinite(features.grad).all()
