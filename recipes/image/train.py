"""Train an image tokenizer: `accelerate launch recipes/image/train.py --config recipes/image/vp_k1024.yaml`.

`--help` lists all settings.
"""

import logging
import os
import sys

from vpvae_hf.training.arguments import describe, parse_config
from vpvae_hf.training.config import TrainingConfig
from vpvae_hf.training.run import train_tokenizer


def main(arguments: list[str]) -> int:
    """Train as the arguments say; errors that a user can mend are printed in one line."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger("vpvae_hf").setLevel(logging.INFO)
    if "--help" in arguments or "-h" in arguments:
        print(f"{__doc__}\nSettings: --config FILE.yaml, as often as wanted, and\n{describe(TrainingConfig)}")
        return 0
    try:
        train_tokenizer(parse_config(TrainingConfig, arguments))
    except KeyboardInterrupt:
        return 130
    except (ValueError, ImportError, OSError) as error:
        logging.getLogger("train").error(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
