"""All tiny models and data of the tests: untrained tokenizers, always with the same weights, and batches for them."""

import numpy as np
import torch

from vpvae_hf import AutoencoderVP, VPCodecConfig, VPCodecModel
from vpvae_hf.quantizers import QUANTIZERS

VP = {"kind": "vp", "codebook_size": 16, "latent_dim": 3}
FSP = {"kind": "fsp", "levels": [4, 3, 3]}
FSQ = {"kind": "fsq", "levels": [4, 3, 3]}
GROUPED = {"kind": "token_bridge", "codebook_size": 5, "latent_dim": 2}
NONE = {"kind": "none", "latent_dim": 3}
# Small quantizers of every variant of every kind in the registry.
QUANTIZER_SETTINGS = {
    f"{kind}-{number}": {"kind": kind} | example
    for kind, (config_class, _) in QUANTIZERS.items()
    for number, example in enumerate(config_class.examples)
}

FACTOR = 4  # of the image tokenizer: side of the square of pixels that one code stands for
HOP, RATE = 96, 16000  # of the audio tokenizer
# The first sample goes on for long after the others are out of reach of its attention windows.
LENGTHS = [30 * HOP + 7, 3 * HOP, 2 * HOP - 1, HOP]
# Latents have a standard deviation of about a quarter.
CLOSE = {"atol": 1e-5, "rtol": 0}


def is_fitted(quantizer):
    """Whether anything has to be fitted before there are codes, by kind or settings."""
    return quantizer.needs_fitting or bool(quantizer.fitted_tensors)


def fit_to(tokenizer, latents):
    """Install a codebook of latents [N, d], or levels at their quantiles, in the metric that the settings name.

    Args:
        tokenizer: a model or a quantizer.
    """
    config = getattr(tokenizer, "quantize", tokenizer).config
    if config.fits == "levels":
        shares = [(torch.arange(count) + 0.5) / count for count in config.levels]
        tokenizer.set_levels([column.quantile(share) for column, share in zip(latents.T, shares, strict=True)])
        return
    codebook = latents[torch.randperm(len(latents))[: config.codebook_size]]
    spread = torch.linspace(1.5, 0.5, config.latent_dim).diag() + 0.2
    tokenizer.set_codebook(codebook, spread if config.metric == "decoder" else None)


def tiny_vae(quantizer=VP, fitted=True, **settings):
    """An image tokenizer in eval mode; its codebook is of its own latents, so that its codes differ."""
    torch.manual_seed(0)
    small = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 32,
    }
    vae = AutoencoderVP(**small | settings, quantizer=quantizer).eval()
    if fitted and is_fitted(vae.quantize):
        images = noise_images(64, 4 * FACTOR, 4 * FACTOR, channels=vae.config.in_channels)
        latents = vae.latent_vectors(images).flatten(0, -2)
        fit_to(vae, latents)
    return _spread(vae, vae.quant_conv)


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
    """An audio tokenizer in eval mode, whose latents use all of their context and spread over the codes."""
    torch.manual_seed(0)
    codec = VPCodecModel(tiny_config(quantizer, **settings)).eval()
    with torch.no_grad():
        codec.quant_proj.bias.zero_()
        features = codec._features(noise(1, 20 * codec.config.hop_length), None)[0]
        codec.quant_proj.bias -= features.mean(dim=0)
        if fitted and is_fitted(codec.quantize):
            fit_to(codec, 0.3 * torch.randn(codec.config.codebook_size, codec.config.codebook_dim))
    return _spread(codec, codec.quant_proj)


def _spread(tokenizer, projection):
    """The tokenizer; if its bins are fixed, its latents are scaled up to fall into all of them."""
    if tokenizer.quantize.code_groups > 1:
        torch.nn.init.normal_(projection.weight, std=1.0)
    return tokenizer


def noise_images(count=2, height=32, width=48, seed=1, channels=3):
    """Images [B, C, H, W] in [-1, 1]."""
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise(batch, length, seed=1):
    """Audio [B, 1, T]."""
    return 0.3 * torch.randn(batch, 1, length, generator=torch.Generator().manual_seed(seed))


def mask_of(lengths):
    """Padding mask [B, T] of samples of those lengths."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def batch_of(lengths, seed=1):
    """Audio and mask of samples of those lengths."""
    return noise(len(lengths), max(lengths), seed), mask_of(lengths)


def arrays_like(tensor, folder):
    """The tensor's values as people hand them over: numpy arrays of every layout, one on disk, and lists."""
    array = tensor.numpy()
    read_only, rows = array.copy(), np.empty(len(array), dtype=object)
    read_only.setflags(write=False)
    rows[:] = list(array)
    np.save(folder / "array.npy", array)
    return {
        "array": array,
        "read-only": read_only,
        "on disk": np.load(folder / "array.npy", mmap_mode="r"),
        "reversed": np.flip(np.flip(array).copy()),
        "last axis first": np.asfortranarray(array),
        "other byte order": array.astype(array.dtype.newbyteorder()),
        "rows": rows,
        "lists": array.tolist(),
        "list of arrays": list(array),
        "tuple of tensors": tuple(tensor),
    }


# Modality -> how its tokenizer is made, and signals for it.
MODELS = {"image": (tiny_vae, noise_images()), "audio": (tiny_codec, noise(2, 12 * HOP))}


def training(tokenizer):
    """The tokenizer in train mode, and with enough latents queued to perturb from the first step."""
    if tokenizer.quantize.needs_fitting:
        tokenizer.quantize.queue.push(0.3 * torch.randn(200, 3, generator=torch.Generator().manual_seed(2)))
    return tokenizer.train()
