from vpvae_hf.metrics.evaluate_modules import MelDistance  # noqa: F401
