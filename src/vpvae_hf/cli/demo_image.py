"""`vpvae demo`: draw reconstructions of the bundled image tokenizer, then train, save, reload and draw a small one."""

import argparse
import dataclasses
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vpvae_hf.bundled import bundled_tokenizer
from vpvae_hf.data import center_crops, load_images, load_photographs, random_crops
from vpvae_hf.files import claim_output_folder, write_json
from vpvae_hf.losses import build_losses, image_losses
from vpvae_hf.metric_labels import metric_label
from vpvae_hf.metrics import ReconstructionQuality, evaluate_reconstruction, image_quality
from vpvae_hf.modalities import MODALITIES
from vpvae_hf.models import AutoencoderVP
from vpvae_hf.training import CodebookFit, fit_codebook
from vpvae_hf.training.config import LoopConfig
from vpvae_hf.training.trainer import MetricsLog, Trainer
from vpvae_hf.training.validation import reconstructions_picture

from .pictures import save_code_maps, save_every_size, save_training_curves

# Small enough for two CPU cores: a code for every 4 x 4 pixels, 0.7 million weights.
_ARCHITECTURE = {
    "patch_size": 4,
    "linear_shortcut": True,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
}
_TRAINING_CROP, _HELD_OUT_CROP, _SHOWN_CROP = 32, 64, 96
_BATCH_SIZE = 16
_LEARNING_RATE = 2e-3
# With the squared error, the model learns colours sooner.
_LOSS_WEIGHTS = {"l1": 1.0, "l2": 2.0}
_VALIDATIONS = 9
# One held-out crop in this many is measured during training; at the end, all of them are.
_VALIDATED_EVERY = 3
_MOST_IMAGES, _SHORTEST_SIDE = 1000, 256
_SHOWN_IMAGES = 5
_SHOWN_METRICS = ("psnr", "psnr_unquantized", "ssim", "code_usage", "quantization_error_rms")
_TRAINING_METRICS = tuple(f"quantizer/{name}" for name in ("displacement_rms", "quantization_error_rms", "acceptance"))
# In so short a run, the queue should turn over every few hundred steps.
_QUEUE_SHARE = 0.1
_WARMUP_SHARE = 0.02
_LOGGING_STEPS = 10
_LAST_ROWS = 5


def run(options: argparse.Namespace) -> None:
    """Train, fit, evaluate, save and reload, and print where the results are."""
    started = time.monotonic()
    claim_output_folder(options.output, overwrite=options.overwrite)
    training, held_out = _images(options)
    quantizer = {"kind": options.quantizer, "codebook_size": options.codebook_size}
    if options.quantizer == "vp":
        quantizer |= {"latent_dim": 4, "perturbation": options.perturbation, "queue_share": _QUEUE_SHARE}
    torch.manual_seed(options.seed)
    vae = AutoencoderVP(**_ARCHITECTURE, sample_size=_HELD_OUT_CROP, quantizer=quantizer)
    weights = sum(parameter.numel() for parameter in vae.parameters())
    print(
        f"{len(training)} training images, {len(held_out)} held out; {weights / 1e6:.1f} million weights, "
        f"factor {vae.downsample_factor}, {vae.quantize.codebook_size} codes of {vae.quantize.latent_dim} dimensions"
    )
    held_out_crops = list(center_crops(held_out, size=_HELD_OUT_CROP, batch_size=50))
    validated = [torch.cat(held_out_crops)[::_VALIDATED_EVERY]]
    _show_bundled(options.output, training)
    print(
        f"{options.output / 'bundled.png'}: photographs at every codebook size of the tokenizer that comes with the "
        f"package, after {time.monotonic() - started:.0f} s. Now a small one is trained."
    )
    log = Trainer(
        vae,
        random_crops(training, size=_TRAINING_CROP, batch_size=_BATCH_SIZE, seed=options.seed),
        LoopConfig(
            max_train_steps=options.steps,
            learning_rate=_LEARNING_RATE,
            lr_warmup_steps=max(1, round(_WARMUP_SHARE * options.steps)),
            logging_steps=_LOGGING_STEPS,
            validation_steps=max(1, options.steps // _VALIDATIONS),
        ),
        losses=build_losses(_LOSS_WEIGHTS, image_losses()),
        loss_weights=_LOSS_WEIGHTS,
        validate=lambda step: _validated(vae, validated),
    ).run()
    fit = None
    if vae.quantize.needs_fitting:
        crops = random_crops(training, size=_HELD_OUT_CROP, batch_size=_BATCH_SIZE, seed=options.seed + 1)
        fit = fit_codebook(vae, crops, seed=options.seed)
    vae.eval()
    quality = _measured(vae, held_out_crops)
    # The crop nearest to the middle of each of the first images.
    grids = [list(center_crops([image], size=_SHOWN_CROP, batch_size=1)) for image in held_out[:_SHOWN_IMAGES]]
    shown = torch.cat([grid[len(grid) // 2] for grid in grids])
    folder = options.output / "tokenizer"
    vae.save_pretrained(folder)
    _write_pictures(options.output, vae, shown, log)
    write_json(options.output / "results.json", _results(log, fit, quality, options))
    identical = _same_codes_after_reload(folder, shown, vae.tokenize(shown))
    print("\n" + _table(log, fit, quality) + "\n")
    if not identical:
        raise ValueError(f"{folder} gives other codes in a fresh process than the model that was saved")
    print(f"Reloaded in a fresh process: all {shown.shape[0]} images have identical codes.")
    print(f"Done in {(time.monotonic() - started) / 60:.1f} minutes. Look at:")
    for name, what in _WRITTEN.items():
        print(f"  {options.output / name}  {what}")
    print(f'Use it: AutoencoderVP.from_pretrained("{folder}")')


_WRITTEN = {
    "bundled.png": "photographs at every codebook size of the tokenizer that comes with the package",
    "reconstruction.png": "held-out crops, decoded without quantization and from codes",
    "tokens.png": "the codes of those crops",
    "training.png": "loss, PSNR, code usage and perturbation over the steps",
    "results.json": "all metrics",
}


def _images(options: argparse.Namespace) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Training and held-out images, [H, W, 3] uint8."""
    if options.dataset is None:
        return load_photographs()
    scale = {"limit": _MOST_IMAGES, "shortest_side": _SHORTEST_SIDE}
    images = load_images(options.dataset, split="train", column=options.column, **scale)
    if len(images) < 2:
        raise ValueError(f"data set {options.dataset} has {len(images)} image and one is held out; give at least 2")
    held_out = max(1, min(len(images) // 10, 20))
    return images[:-held_out], images[-held_out:]


def _show_bundled(output: Path, images: list[np.ndarray]) -> None:
    """Draw the bundled tokenizer's reconstructions of the middle squares of images."""
    vae = AutoencoderVP.from_pretrained(bundled_tokenizer("image"))
    output.mkdir(parents=True, exist_ok=True)
    save_every_size(output / "bundled.png", vae, images[:_SHOWN_IMAGES])


def _measured(vae: AutoencoderVP, crops: list[Tensor], codebook: Tensor | None = None) -> ReconstructionQuality:
    return evaluate_reconstruction(vae, crops, codebook, metric_fn=image_quality, unquantized=("psnr",))


def _validated(vae: AutoencoderVP, crops: list[Tensor]) -> dict[str, float]:
    """Metrics with the live codebook; empty before there is one."""
    codebook = vae.quantize.live_codebook()
    if vae.quantize.needs_fitting and codebook is None:
        return {}
    return _measured(vae, crops, codebook).metrics


_TOKENIZE = """
import sys, numpy, torch
from vpvae_hf import AutoencoderVP
folder, images, codes = sys.argv[1:]
numpy.save(codes, AutoencoderVP.from_pretrained(folder).tokenize(torch.from_numpy(numpy.load(images))).numpy())
"""


def _same_codes_after_reload(folder: Path, images: Tensor, codes: Tensor) -> bool:
    """Whether a separate process that has only the saved folder gets the same codes."""
    with tempfile.TemporaryDirectory() as scratch:
        images_file, codes_file = Path(scratch, "images.npy"), Path(scratch, "codes.npy")
        np.save(images_file, images.numpy())
        subprocess.run([sys.executable, "-c", _TOKENIZE, folder, images_file, codes_file], check=True)
        return np.array_equal(np.load(codes_file), codes.numpy())


@torch.no_grad()
def _write_pictures(output: Path, vae: AutoencoderVP, images: Tensor, log: MetricsLog) -> None:
    _, picture = reconstructions_picture(MODALITIES["image"], vae, images)
    Image.fromarray(picture).save(output / "reconstruction.png")
    codes = vae.tokenize(images)
    save_code_maps(output / "tokens.png", images, codes, vae.quantize.decode(codes))
    save_training_curves(output / "training.png", log)


def _results(
    log: MetricsLog, fit: CodebookFit | None, quality: ReconstructionQuality, options: argparse.Namespace
) -> dict[str, Any]:
    logged = sorted({name for row in log.rows for name in row})
    last = {name: log.last_mean(name, _LAST_ROWS) for name in logged}
    return {
        "settings": {name: str(value) for name, value in vars(options).items() if name != "run"},
        "held_out": {**quality.metrics, "lpips": None, "images": quality.items, "tokens": quality.tokens},
        "codebook_fit": None if fit is None else dataclasses.asdict(fit),
        # NaN stands for what was not measured yet; JSON has no NaN.
        "last_steps": {name: None if math.isnan(value) else value for name, value in last.items()},
    }


def _table(log: MetricsLog, fit: CodebookFit | None, quality: ReconstructionQuality) -> str:
    metrics = quality.metrics
    last = {name: log.last_mean(name, _LAST_ROWS) for name in _TRAINING_METRICS}
    rows = [
        (f"On {quality.items} held-out crops", ""),
        *((metric_label(name).label, metric_label(name).format(metrics[name])) for name in _SHOWN_METRICS),
        (f"In the last {_LAST_ROWS * _LOGGING_STEPS} training steps", ""),
        *((metric_label(name).label, metric_label(name).format(last[name])) for name in _TRAINING_METRICS),
    ]
    if fit is not None:
        rows += [
            (f"Codebook, fitted to {fit.fitted_latents} latents", ""),
            ("mean squared error, fitted latents", f"{fit.distortion:.4f}"),
            ("mean squared error, held-out latents", f"{fit.held_out_distortion:.4f}"),
        ]
    return "\n".join(f"{'  ' if value else ''}{name:<42}{value:>12}".rstrip() for name, value in rows)
