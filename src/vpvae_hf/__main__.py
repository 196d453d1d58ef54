"""`python -m vpvae_hf`, the same as `vpvae`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
