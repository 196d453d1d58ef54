from vpvae_hf.metrics.evaluate_modules import CodeUsage  # noqa: F401
