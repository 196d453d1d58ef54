from vpvae_hf.metrics.evaluate_modules import PSNR  # noqa: F401
