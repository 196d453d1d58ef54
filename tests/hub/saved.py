"""Tokenizers to be saved, and what a training run leaves beside them."""

import json

import pytest
from PIL import Image

image_only, audio_only = (pytest.mark.parametrize("modality", [name], indirect=True) for name in ("image", "audio"))
WEIGHTS = {"image": "diffusion_pytorch_model", "audio": "model"}
# Beside the card, the config, the preprocessor and the weights.
RUN_FILES = {
    "image": {"results.json", "reconstruction.png"},
    "audio": {"results.json", "reconstruction.png", "original.flac", "reconstruction.flac"},
}
_METRICS = {
    "image": {"psnr": 27.04321, "ssim": 0.7384, "code_usage": 0.617, "sharpness": 3.5},
    "audio": {"pesq": 2.71828, "pesq_unquantized": 3.5, "stoi": 0.91, "mel_distance": 0.75, "code_usage": 0.5},
}


def results_of(modality, **parts):
    image = modality == "image"
    items, metrics = ("images" if image else "clips"), _METRICS[modality]
    others = {"psnr": float("nan"), "ssim": 0.5} if image else {"pesq": float("nan")}
    return {
        "training": {
            "dataset": "owner/signals",
            "dataset_config": None,
            "split": "train",
            "column": modality,
            "steps": 900,
            "images_seen" if image else "segments_seen": 14400,
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
            {"dataset": "owner/signals", "split": "validation", items: 150, "tokens": 38400, "metrics": metrics},
            {"dataset": "/data/mine", "split": "test", items: 20, "tokens": 1280, "metrics": others},
        ],
    } | parts


def add_results(folder, modality, **parts):
    """What a training run leaves: results, a picture, and for audio a clip before and after."""
    (folder / "results.json").write_text(json.dumps(results_of(modality, **parts)))
    Image.new("RGB", (8, 8), "red").save(folder / "reconstruction.png")
    for name in RUN_FILES[modality] - {"results.json", "reconstruction.png"}:
        (folder / name).write_bytes(name.encode())
    return folder
