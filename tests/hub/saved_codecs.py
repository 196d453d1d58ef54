"""Folders of audio tokenizers as transformers writes them, and what a training run leaves beside them."""

import json

import numpy as np
import torch
from safetensors.numpy import save_file

from vpvae_hf import VPCodecConfig, VPCodecModel

CONFIG = {
    "architectures": ["VPCodecModel"],
    "causal": False,
    "downsampling_ratios": [2, 3, 4, 4],
    "dtype": "float32",
    "model_type": "vp_codec",
    "sampling_rate": 16000,
}
QUANTIZERS = {
    "vp": {"kind": "vp", "codebook_size": 1024, "latent_dim": 4, "fitted": True},
    "unfitted": {"kind": "vp", "codebook_size": 1024, "latent_dim": 4, "fitted": False},
    "fsp": {"kind": "fsp", "codebook_size": 256, "latent_dim": 4, "levels": [8, 4, 4, 2], "fitted": True},
}
# Together 4 x 8 + 1024 x 4 values.
WEIGHTS = {"encoder.weight": np.ones((4, 8), np.float32), "quantize.codebook": np.ones((1024, 4), np.float32)}
PARAMETERS = 4128
RESULTS = {
    "training": {
        "dataset": "owner/speech",
        "dataset_config": "clean",
        "split": "train",
        "column": "audio",
        "steps": 900,
        "segments_seen": 14400,
        "base_model": None,
        "settings": {"quantizer": {"kind": "vp"}, "output": "/home/someone/secret/run"},
        "versions": {"vpvae_hf": "0.1.0", "transformers": "5.23.0"},
    },
    "codebook": {
        "codebook_size": 1024,
        "fitted_latents": 4096,
        "held_out_latents": 512,
        "distortion": 0.125,
        "held_out_distortion": 0.25,
        "held_out_usage": 0.875,
        "iterations": 12,
    },
    "evaluation": [
        {
            "dataset": "owner/speech",
            "split": "validation",
            "clips": 150,
            "tokens": 38400,
            "metrics": {
                "pesq": 2.71828,
                "pesq_unquantized": 3.5,
                "stoi": 0.91,
                "mel_distance": 0.75,
                "code_usage": 0.5,
            },
        },
        {"dataset": "/data/mine", "split": "test", "clips": 20, "tokens": 1280, "metrics": {"pesq": float("nan")}},
    ],
}


def tiny_codec(fitted=True):
    """A model to be saved."""
    torch.manual_seed(0)
    config = VPCodecConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        quantizer={"kind": "vp", "codebook_size": 16, "latent_dim": 3},
    )
    codec = VPCodecModel(config).eval()
    if fitted:
        # Of its own latents, so that its codes differ.
        codec.set_codebook(codec.latent_vectors(torch.randn(1, 1, 16 * codec.config.hop_length))[0])
    return codec


def save_codec(folder, quantizer="vp", **config):
    """A folder with config, weights in one file, and feature extractor."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | {"quantizer": QUANTIZERS[quantizer]} | config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": CONFIG["sampling_rate"]}))
    save_file(WEIGHTS, folder / "model.safetensors")
    return folder


def split_weights(folder, variant=""):
    """Two shards and their index in place of the one file."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    names = {weight: f"model{variant}-{n:05}-of-00002.safetensors" for n, weight in enumerate(WEIGHTS, start=1)}
    for weight, name in names.items():
        save_file({weight: WEIGHTS[weight]}, folder / name)
    index = folder / f"model.safetensors.index{variant}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return {*names.values(), index.name}


def add_results(folder):
    """What a training run leaves: figures, spectrograms, and a clip before and after."""
    (folder / "results.json").write_text(json.dumps(RESULTS))
    for name in ("reconstruction.png", "original.flac", "reconstruction.flac"):
        (folder / name).write_bytes(name.encode())
    return folder
