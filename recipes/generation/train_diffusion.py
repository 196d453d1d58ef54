"""Train a latent diffusion model: `accelerate launch recipes/generation/train_diffusion.py --config FILE`.

It learns the continuous latents of an image tokenizer. `--help` lists all settings.
"""

import sys

from vpvae_hf.training.config import run_recipe
from vpvae_hf.training.diffusion_config import DiffusionConfig
from vpvae_hf.training.diffusion_run import train_diffusion

if __name__ == "__main__":
    sys.exit(run_recipe(DiffusionConfig, train_diffusion, __doc__, sys.argv[1:]))
