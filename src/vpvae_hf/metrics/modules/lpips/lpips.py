from vpvae_hf.metrics.evaluate_modules import LPIPS  # noqa: F401
