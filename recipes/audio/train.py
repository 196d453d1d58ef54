"""Train an audio tokenizer: `accelerate launch recipes/audio/train.py --config recipes/audio/vp_k1024.yaml`.

`--help` lists all settings.
"""

import sys

from vpvae_hf.modalities.audio import AudioTrainingConfig
from vpvae_hf.training.config import run_recipe
from vpvae_hf.training.run import train_tokenizer

if __name__ == "__main__":
    sys.exit(run_recipe(AudioTrainingConfig, train_tokenizer, __doc__, sys.argv[1:]))
