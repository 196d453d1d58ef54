"""A tokenizer to be saved, and what a training run leaves beside it."""

import torch

from vpvae_hf import AutoencoderVP

RESULTS = {
    "training": {
        "dataset": "owner/photographs",
        "dataset_config": None,
        "split": "train",
        "column": "image",
        "steps": 900,
        "images_seen": 14400,
        "base_model": None,
        "settings": {"model": {"latent_dim": 3}, "output": "/home/someone/secret/run"},
        "versions": {"vpvae_hf": "0.1.0", "torch": "2.13.0"},
    },
    "codebook": {
        "codebook_size": 16,
        "fitted_latents": 4096,
        "held_out_latents": 512,
        "distortion": 0.125,
        "held_out_distortion": 0.25,
        "held_out_usage": 0.875,
        "iterations": 12,
    },
    "evaluation": [
        {
            "dataset": "owner/photographs",
            "split": "validation",
            "images": 150,
            "tokens": 38400,
            "metrics": {"psnr": 27.04321, "ssim": 0.7384, "code_usage": 0.617, "sharpness": 3.5},
        },
        {
            "dataset": "/data/mine",
            "split": "test",
            "images": 20,
            "tokens": 1280,
            "metrics": {"psnr": float("nan"), "ssim": 0.5},
        },
    ],
}


def tiny(fitted=True):
    torch.manual_seed(0)
    vae = AutoencoderVP(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        quantizer={"kind": "vp", "codebook_size": 16, "latent_dim": 3},
    )
    if fitted:
        vae.set_codebook(torch.randn(16, 3))
    return vae.eval()
