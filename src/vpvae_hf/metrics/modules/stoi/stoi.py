from vpvae_hf.metrics.evaluate_modules import STOI  # noqa: F401
