"""Train a causal language model over codes: `accelerate launch recipes/generation/train_ar.py --config FILE`.

`vpvae tokenize` writes the codes. `--help` lists all settings.
"""

import sys

from vpvae_hf.training.config import run_recipe
from vpvae_hf.training.generator_config import AutoregressiveConfig
from vpvae_hf.training.generator_run import train_generator

if __name__ == "__main__":
    sys.exit(run_recipe(AutoregressiveConfig, train_generator, __doc__, sys.argv[1:]))
