"""Tokenize images with a saved tokenizer: `python -m vpvae_hf.cli.reload_check FOLDER IMAGES.npy CODES.npy`.

The demo runs this in a process of its own, to see that nothing but the saved folder is needed to get the same codes.
"""

import sys

import numpy as np
import torch

from vpvae_hf import AutoencoderVP


def main(folder: str, images_file: str, codes_file: str) -> None:
    """Read images [B, C, H, W], write their codes [B, H/f, W/f]."""
    vae = AutoencoderVP.from_pretrained(folder)
    codes = vae.tokenize(torch.from_numpy(np.load(images_file)))
    np.save(codes_file, codes.numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
