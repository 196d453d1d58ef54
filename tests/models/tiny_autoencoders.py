"""Small image tokenizers, untrained."""

import torch

from vpvae_hf import AutoencoderVP

VP = {"kind": "vp", "codebook_size": 16, "latent_dim": 3}
FSP = {"kind": "fsp", "levels": [4, 3, 3]}
FSQ = {"kind": "fsq", "levels": [4, 3, 3]}
NONE = {"kind": "none", "latent_dim": 3}


def tiny(quantizer=VP, fitted=True, **settings):
    torch.manual_seed(0)
    architecture = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 32,
    }
    vae = AutoencoderVP(**architecture | settings, quantizer=quantizer)
    if fitted and vae.quantize.needs_fitting:
        vae.set_codebook(torch.randn(16, 3))
    return vae.eval()
