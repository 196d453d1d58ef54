"""A training run of a latent diffusion model, from images to a saved `LDMPipeline`.

Shapes: B images, d latent dimensions, h x w latents of an image.
"""

import dataclasses
import importlib.metadata
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from diffusers import DDIMScheduler, LDMPipeline, UNet2DModel
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from vpvae_hf import distributed
from vpvae_hf.data import ItemLoader
from vpvae_hf.hub import push_pipeline, write_pipeline_results
from vpvae_hf.metrics import image_grid
from vpvae_hf.models import AutoencoderVP

from .diffusion_config import DiffusionConfig
from .images import ImageModality
from .job import accelerator_for, require_settings, start_trackers
from .loop import Trainer
from .output_folder import prepare_output, telling_of_checkpoints
from .splits import TrainingData

_PREDICTIONS = ("epsilon", "v_prediction", "sample")


def train_diffusion(config: DiffusionConfig) -> Path:
    """Train a UNet to denoise continuous latents, generate samples, and save a pipeline; gives its folder.

    Every rank of a job calls this. What is written in the output folder: checkpoint-STEP, metrics.jsonl, settings.json,
    trackers' logs, and the pipeline with its card, results.json and samples.png, whose upper row is decoded as it is,
    whose lower row through the nearest codes.

    Raises:
        ValueError: settings that miss or contradict something, data that cannot be read.
        FileExistsError: the output folder holds another run.
        FileNotFoundError: no such data set, tokenizer or checkpoint.
    """
    require_settings(config, "output_dir", "tokenizer", "data.name")
    accelerator = accelerator_for(config)
    vae = AutoencoderVP.from_pretrained(config.tokenizer).eval().requires_grad_(False).to(accelerator.device)
    if config.quantize:
        vae.quantize.check_codes()
    if vae.config.scaling_factor == 1:
        accelerator.print(
            f"{config.tokenizer} has a scaling_factor of 1; where its latents have no unit variance, measure it first: "
            "vpvae_hf.measure_scaling_factor(vae, batches), then save"
        )
    output = Path(config.output_dir)
    set_seed(config.seed)
    scheduler = _scheduler(config)
    denoiser = _Denoiser(_unet(config, vae), scheduler).to(accelerator.device)
    checkpoint = prepare_output(output, config, made=("pipeline",))
    data = TrainingData(ImageModality(), vae, config, accelerator)
    set_seed(config.seed, device_specific=True)
    trainer = Trainer(
        denoiser,
        _Latents(data.training(), vae),
        config,
        losses={},
        accelerator=accelerator,
        output=output,
        validate=(
            (lambda step: _validated(denoiser, vae, data, config, limit=config.data.validation_examples))
            if data.validates
            else None
        ),
    )
    if checkpoint is not None:
        trainer.resume(checkpoint)
    weights = sum(parameter.numel() for parameter in denoiser.parameters())
    start = "" if checkpoint is None else f"; going on from {checkpoint}"
    accelerator.print(f"{weights / 1e6:.1f} million weights, scaling_factor {vae.config.scaling_factor:.4g}{start}")
    start_trackers(accelerator, config, trainer.step)
    with telling_of_checkpoints(output, trainer):
        trainer.run()
    # Of the weights that are published, an average where there is one, on all of what is held out.
    measured = _validated(denoiser, vae, data, config, limit=None) if data.validates else None
    folder = output / "pipeline"
    with distributed.failing_together():
        if accelerator.is_main_process:
            vae.register_to_config(force_not_quantize=not config.quantize)
            pipeline = LDMPipeline(vqvae=vae, unet=denoiser.unet.eval(), scheduler=scheduler)
            pipeline.save_pretrained(folder)
            if config.samples:
                Image.fromarray(_samples(pipeline, config)).save(folder / "samples.png")
            results = _results(config, pipeline, trainer, measured)
            write_pipeline_results(folder, results, repo_id=config.hub_model_id)
            error = "" if measured is None else f"denoising error {measured['denoising_error']:.4f}; "
            accelerator.print(
                f'{error}pipeline: {folder}; LDMPipeline.from_pretrained("{folder}") after import vpvae_hf'
            )
            if config.push_to_hub:
                url = push_pipeline(folder, config.hub_model_id, private=config.hub_private)
                accelerator.print(f"pushed to {url}")
    accelerator.end_training()
    return folder


@dataclass
class _Denoised:
    """What the trainer reads of a forward pass."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class _Denoiser(nn.Module):
    """A UNet that predicts noise (DDPM, arXiv 2006.11239), or what else the scheduler's `prediction_type` says."""

    def __init__(self, unet: UNet2DModel, scheduler: DDIMScheduler):
        super().__init__()
        self.unet, self._scheduler = unet, scheduler

    def forward(self, latents: Tensor, generator: torch.Generator | None = None) -> _Denoised:
        """The mean squared error on latents [B, d, h, w] of unit variance, at random times with random noise."""
        scheduler, device = self._scheduler, latents.device
        # Drawn on the CPU where a generator is given, which is one of the CPU.
        place = device if generator is None else "cpu"
        noise = torch.randn(latents.shape, generator=generator, device=place).to(device)
        steps = scheduler.config.num_train_timesteps
        times = torch.randint(steps, (len(latents),), generator=generator, device=place).to(device)
        predicted = self.unet(scheduler.add_noise(latents, noise, times), times).sample
        target = noise
        if scheduler.config.prediction_type == "v_prediction":
            target = scheduler.get_velocity(latents, noise, times)
        elif scheduler.config.prediction_type == "sample":
            target = latents
        return _Denoised(loss=functional.mse_loss(predicted.float(), target.float()))

    def enable_gradient_checkpointing(self) -> None:
        self.unet.enable_gradient_checkpointing()


class _Latents:
    """Batches of images as latents of unit variance; their position is that of the images."""

    def __init__(self, images: ItemLoader, vae: AutoencoderVP):
        self._images, self._vae = images, vae

    def __iter__(self) -> Iterator[Tensor]:
        return (_scaled(self._vae, batch) for batch in self._images)

    @property
    def skipped(self) -> int:
        return self._images.skipped

    def state_dict(self) -> dict:
        return self._images.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self._images.load_state_dict(state)


@torch.no_grad()
def _scaled(vae: AutoencoderVP, pixel_values: Tensor) -> Tensor:
    return vae.encode(pixel_values.to(vae.device)).latents * vae.config.scaling_factor


def _scheduler(config: DiffusionConfig) -> DDIMScheduler:
    try:
        scheduler = DDIMScheduler(**{"clip_sample": False} | config.scheduler)
    except (TypeError, NotImplementedError) as error:
        raise ValueError(f"scheduler={config.scheduler} is no DDIMScheduler: {error}") from error
    prediction, steps = scheduler.config.prediction_type, scheduler.config.num_train_timesteps
    if prediction not in _PREDICTIONS:
        raise ValueError(f"scheduler.prediction_type must be one of {', '.join(_PREDICTIONS)}, got {prediction!r}")
    if config.num_inference_steps > steps:
        raise ValueError(
            f"num_inference_steps must be at most scheduler.num_train_timesteps={steps}, got "
            f"{config.num_inference_steps}"
        )
    return scheduler


@torch.no_grad()
def _unet(config: DiffusionConfig, vae: AutoencoderVP) -> UNet2DModel:
    """A new UNet, which takes latents of the sizes that it will be given."""
    factor, channels, data = vae.downsample_factor, vae.config.latent_channels, config.data
    sizes = {"data.size": data.size, "data.validation_size": data.validation_size or data.size}
    for name, size in sizes.items():
        if size % factor:
            raise ValueError(f"{name} must be a multiple of the tokenizer's factor {factor}, got {size}")
    follows = {"sample_size": data.size // factor, "in_channels": channels, "out_channels": channels}
    try:
        unet = UNet2DModel(**follows | config.unet)
    except (TypeError, ValueError) as error:
        raise ValueError(f"unet={config.unet} is no UNet2DModel: {error}") from error
    for name, size in sizes.items():
        try:
            unet(torch.zeros(1, channels, size // factor, size // factor), torch.zeros(1, dtype=torch.long))
        except RuntimeError as error:
            raise ValueError(
                f"the UNet cannot take latents of {size // factor} x {size // factor}, as {name}={size} makes them; "
                f"halve them less often, with fewer unet.block_out_channels, or give another size ({error})"
            ) from error
    return unet


@torch.no_grad()
def _validated(
    denoiser: _Denoiser, vae: AutoencoderVP, data: TrainingData, config: DiffusionConfig, *, limit: int | None
) -> dict[str, float]:
    """The error on held-out images, at the same times and with the same noise each time."""
    generator = torch.Generator().manual_seed(config.seed)
    denoiser.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    with distributed.failing_together():
        for batch in data.held_out(limit):
            loss = denoiser(_scaled(vae, batch), generator).loss
            sums += torch.tensor([float(loss) * len(batch), len(batch)], dtype=torch.float64)
    denoiser.train()
    total, count = distributed.sum_over_ranks(sums).tolist()
    return {"denoising_error": total / count if count else math.nan}


def _results(
    config: DiffusionConfig, pipeline: LDMPipeline, trainer: Trainer, measured: dict[str, float] | None
) -> dict[str, Any]:
    """What the model card tells."""
    vae, unet = pipeline.vqvae, pipeline.unet
    side = unet.config.sample_size
    return {
        "method": "diffusion",
        "parameters": sum(weights.numel() for weights in unet.parameters()),
        "size": config.data.size,
        "latents": [vae.config.latent_channels, side, side],
        "quantize": config.quantize,
        "has_codes": _has_codes(vae),
        "dataset": config.data.name,
        "split": config.data.split,
        "tokenizer": config.tokenizer,
        "steps": trainer.step,
        "evaluation": measured,
        "settings": dataclasses.asdict(config),
        "versions": {name: importlib.metadata.version(name) for name in ("vpvae_hf", "torch", "diffusers")},
    }


def _has_codes(vae: AutoencoderVP) -> bool:
    return vae.quantize.has_codes and vae.quantize.config.fitted


def _samples(pipeline: LDMPipeline, config: DiffusionConfig):
    """Rows of the same latents, decoded as they are, and through codes where there are such."""
    vae, rows = pipeline.vqvae, []
    kept = vae.config.force_not_quantize
    # The pipeline has no way to decode the same latents twice.
    for as_they_are in [True, False] if _has_codes(vae) else [True]:
        vae.register_to_config(force_not_quantize=as_they_are)
        generator = torch.Generator().manual_seed(config.seed)
        made = pipeline(
            batch_size=config.samples,
            num_inference_steps=config.num_inference_steps,
            generator=generator,
            output_type="np",
        ).images
        rows.append(torch.from_numpy(made).movedim(-1, 1) * 2 - 1)
    vae.register_to_config(force_not_quantize=kept)
    return image_grid(rows)
