from vpvae_hf.metrics.evaluate_modules import SSIM  # noqa: F401
