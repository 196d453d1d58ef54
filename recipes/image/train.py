"""Train an image tokenizer: `accelerate launch recipes/image/train.py --config recipes/image/vp_k1024.yaml`.

`--help` lists all settings.
"""

import sys

from vpvae_hf.modalities.image import ImageTrainingConfig
from vpvae_hf.training.config import run_recipe
from vpvae_hf.training.run import train_tokenizer

if __name__ == "__main__":
    sys.exit(run_recipe(ImageTrainingConfig, train_tokenizer, __doc__, sys.argv[1:]))
