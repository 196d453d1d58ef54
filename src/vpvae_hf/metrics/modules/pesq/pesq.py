from vpvae_hf.metrics.evaluate_modules import PESQ  # noqa: F401
