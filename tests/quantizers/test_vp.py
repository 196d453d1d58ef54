"""Codes of a fitted VP quantizer, whose search tree is kept between calls."""

import pytest
import torch

from vpvae_hf import build_quantizer


def fitted(seed=0, codes=64):
    quantizer = build_quantizer({"kind": "vp", "codebook_size": codes, "latent_dim": 3})
    quantizer.set_codebook(torch.randn(codes, 3, generator=torch.Generator().manual_seed(seed)))
    return quantizer.eval()


def expected(quantizer, latents):
    return (latents[:, None] - quantizer.codebook[None]).square().sum(dim=2).argmin(dim=1)


LATENTS = torch.randn(500, 3, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize(
    "change",
    [
        lambda q: q.codebook.mul_(-1),
        lambda q: q.codebook.data.copy_(fitted(1).codebook),
        lambda q: q.codebook.numpy().fill(0.5),
        lambda q: q.load_state_dict(fitted(2).state_dict()),
        lambda q: q.set_codebook(fitted(3).codebook),
        lambda q: q.set_codebook(fitted(4, codes=32).codebook),
    ],
    ids=["in place", "data", "numpy", "load_state_dict", "set_codebook", "another size"],
)
def test_codes_follow_the_codebook_however_it_is_changed(change):
    quantizer = fitted()
    before = quantizer.encode(LATENTS)
    assert torch.equal(before, expected(quantizer, LATENTS))
    change(quantizer)
    after = quantizer.encode(LATENTS)
    assert torch.equal(quantizer.codebook[after], quantizer.codebook[expected(quantizer, LATENTS)])
    assert not torch.equal(before, after)
