"""Templates of model cards, which `vpvae_hf.hub` fills in."""
