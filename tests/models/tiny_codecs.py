"""Small audio tokenizers whose latents depend on all that they may depend on, and audio for them."""

import torch

from vpvae_hf import VPCodecConfig, VPCodecModel
from vpvae_hf.models.audio_convolutions import CausalPadding

VP = {"kind": "vp", "codebook_size": 16, "latent_dim": 3}
FSP = {"kind": "fsp", "levels": [4, 3, 3]}
HOP = 96
RATE = 16000
# The first sample goes on for long after the others are out of reach of its attention windows.
LENGTHS = [30 * HOP + 7, 3 * HOP, 2 * HOP - 1, HOP]
# Latents have a standard deviation of about a quarter.
CLOSE = {"atol": 1e-5, "rtol": 0}


def tiny_config(quantizer=VP, **settings):
    small = {
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "layer_scale_initial_scale": 1.0,  # attention that matters from the start
        "sliding_window": 8,
        "chunk_length_s": 1.0,
    }
    return VPCodecConfig(**small | settings, quantizer=quantizer)


def tiny_codec(quantizer=VP, fitted=True, **settings):
    """In eval mode, always with the same weights, and latents that spread over the codes."""
    torch.manual_seed(0)
    codec = VPCodecModel(tiny_config(quantizer, **settings)).eval()
    with torch.no_grad():
        codec.quant_proj.bias.zero_()
        features = codec.encode_part(noise(1, 20 * codec.config.hop_length), CausalPadding())[0]
        codec.quant_proj.bias -= features.mean(dim=0)
        if fitted and codec.quantize.needs_fitting:
            codec.set_codebook(0.3 * torch.randn(codec.config.codebook_size, codec.config.codebook_dim))
    return codec


def noise(batch, length, seed=1):
    """Audio [B, 1, T]."""
    return 0.3 * torch.randn(batch, 1, length, generator=torch.Generator().manual_seed(seed))


def mask_of(lengths):
    """Padding mask [B, T] of samples of those lengths."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def batch_of(lengths, seed=1):
    """Audio and mask of samples of those lengths."""
    return noise(len(lengths), max(lengths), seed), mask_of(lengths)


def training(codec):
    """The codec in train mode, and with enough latents queued to perturb from the first step."""
    if codec.quantize.needs_fitting:
        codec.quantize.queue.push(0.3 * torch.randn(200, 3, generator=torch.Generator().manual_seed(2)))
    return codec.train()
