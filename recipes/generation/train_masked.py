"""Train a transformer that fills in masked codes: `accelerate launch recipes/generation/train_masked.py --config FILE`.

`vpvae tokenize` writes the codes. `--help` lists all settings.
"""

import sys

from vpvae_hf.training.config import run_recipe
from vpvae_hf.training.generator_config import MaskedConfig
from vpvae_hf.training.generator_run import train_generator

if __name__ == "__main__":
    sys.exit(run_recipe(MaskedConfig, train_generator, __doc__, sys.argv[1:]))
