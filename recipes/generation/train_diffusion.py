"""Train a latent diffusion model: `accelerate launch recipes/generation/train_diffusion.py --config FILE`.

It learns the continuous latents of an image tokenizer. `--help` lists all settings. The script stands alone: copy it
and change what you like. Shapes: B images, d latent dimensions, h x w latents per image.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from diffusers import DDIMScheduler, LDMPipeline, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vpvae_hf import AutoencoderVP, deferred_checks, distributed
from vpvae_hf.bundled import bundled_or_given
from vpvae_hf.files import open_to_usual_readers
from vpvae_hf.hub import push_pipeline, write_pipeline_results
from vpvae_hf.metrics import image_grid
from vpvae_hf.metrics.pictures import SHOWN_SIDE
from vpvae_hf.modalities import MODALITIES, Batches
from vpvae_hf.modalities.image import ImageDataConfig
from vpvae_hf.progress import progress_bar
from vpvae_hf.settings import require
from vpvae_hf.training.checkpoints import load_checkpoint, prepare_output, resume_hint, save_checkpoint
from vpvae_hf.training.config import LoopConfig, option, require_settings, run_recipe
from vpvae_hf.training.hardware import describe, fuses_adamw, tuned
from vpvae_hf.training.trackers import start_trackers
from vpvae_hf.training.trainer import MetricsLog, accelerator_for

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass
class DiffusionConfig(LoopConfig):
    """A training run of a diffusion model over the continuous latents of an image tokenizer."""

    tokenizer: str | None = option(None, "folder, hub id, or image: the tokenizer that comes with the package")
    unet: dict[str, Any] = option({}, "arguments of diffusers' UNet2DModel; size and channels follow from the latents")
    scheduler: dict[str, Any] = option({}, "arguments of diffusers' DDIMScheduler, such as the schedule of the noise")
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    quantize: bool = option(False, "decode generated latents through their nearest codes")
    samples: int = option(8, "images to generate at the end")
    num_inference_steps: int = option(50, "denoising steps to generate them")

    def __post_init__(self):
        super().__post_init__()
        require(self.samples >= 0, "samples", self.samples, "at least 0")
        require(self.num_inference_steps >= 1, "num_inference_steps", self.num_inference_steps, "at least 1")


@dataclass
class Progress:
    """How far training has come; a part of every checkpoint."""

    step: int = 0
    examples: int = 0

    def state_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step, self.examples = state["step"], state["examples"]


def train(config: DiffusionConfig) -> Path:
    """Train a UNet to denoise latents (DDPM, arXiv 2006.11239); save a pipeline and return its folder.

    Every rank of a job calls this. It writes into the output folder: checkpoint-STEP, metrics.jsonl, settings.json,
    trackers' logs, and the pipeline with its card, results.json and samples.png.
    """
    require_settings(config, "output_dir", "tokenizer", "data.name")
    accelerator, output, last = accelerator_for(config), Path(config.output_dir), config.max_train_steps
    vae = AutoencoderVP.from_pretrained(bundled_or_given(config.tokenizer))
    vae.eval().requires_grad_(False).to(accelerator.device)
    if config.quantize:
        vae.quantize.check_codes()
    if vae.config.scaling_factor == 1:
        accelerator.print(
            f"{config.tokenizer} has a scaling_factor of 1; if its latents do not have unit variance, measure it "
            "first: vpvae_hf.measure_scaling_factor(vae, batches), then save"
        )
    set_seed(config.seed)
    scheduler = build_scheduler(config)
    unet = build_unet(config, vae).to(accelerator.device)
    checkpoint = prepare_output(output, config, outputs=("pipeline",))
    set_seed(config.seed, device_specific=True)  # each rank draws noise and times of its own
    rank, ranks = accelerator.process_index, accelerator.num_processes
    batches = Batches(
        MODALITIES["image"], vae, config.data, batch_size=config.train_batch_size, rank=rank, world_size=ranks
    )
    batches.open()
    loader, readers = batches.training(config.seed), ranks * max(1, config.data.loader_workers)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    betas, decay = (config.adam_beta1, config.adam_beta2), config.adam_weight_decay
    how = {"betas": betas, "weight_decay": decay, "fused": fuses_adamw(accelerator) or None}
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.learning_rate, **how)
    # Not prepared: Accelerate would step it once for each rank.
    schedule = get_scheduler(
        config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=last
    )
    model, optimizer = accelerator.prepare(unet, optimizer)
    on_cuda = accelerator.device.type == "cuda"
    ema = EMAModel(unet.parameters(), decay=config.ema_decay, foreach=on_cuda) if config.use_ema else None
    progress, log = Progress(), MetricsLog(output / "metrics.jsonl" if accelerator.is_main_process else None)
    for part in (progress, schedule, *([ema] if ema else [])):
        accelerator.register_for_checkpointing(part)
    if checkpoint is not None:
        position = load_checkpoint(accelerator, checkpoint)
        if ema is not None:
            ema.to(accelerator.device)  # checkpoints are read into main memory
        if position is not None and position["readers"] == readers:
            loader.load_state_dict(position["state"])
        else:
            accelerator.print(f"{checkpoint} was made with other numbers of ranks or workers; the data starts anew")
        if accelerator.is_main_process:
            log.resume(progress.step)
    weights = sum(parameter.numel() for parameter in unet.parameters())
    start = "" if checkpoint is None else f"; going on from {checkpoint}"
    accelerator.print(f"{weights / 1e6:.1f} million weights, scaling_factor {vae.config.scaling_factor:.4g}{start}")
    accelerator.print(describe(accelerator))
    start_trackers(accelerator, config, progress.step)

    def record(metrics: dict[str, float]) -> None:
        log.append(progress.step, metrics)
        accelerator.log(metrics, step=progress.step)

    where = {"desc": "Training", "unit": "step", "initial": progress.step}
    bar = progress_bar(total=last, **where, shown=progress.step < last)
    losses, norms, examples, began = [], [], 0, time.monotonic()
    with resume_hint(output, lambda: progress.step), tuned(accelerator.device):
        for pixel_values in loader if progress.step < last else ():
            with accelerator.accumulate(model):
                with deferred_checks():  # pixels of files are finite, and checking them would wait for a GPU
                    latents = latents_of(vae, pixel_values)
                loss = denoising_loss(model, scheduler, latents)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norms.append(accelerator.clip_grad_norm_(unet.parameters(), config.max_grad_norm).detach())
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            examples += len(pixel_values) * ranks
            if not accelerator.sync_gradients:
                continue
            if not optimizer.step_was_skipped:  # as fp16's scaler does if a gradient overflows
                schedule.step()
                if ema is not None:
                    ema.step(unet.parameters())
            progress.step += 1
            bar.update()
            ends = progress.step == last
            saves = ends or progress.step % config.checkpointing_steps == 0
            validates = batches.validates and (ends or progress.step % config.validation_steps == 0)
            # Also before a checkpoint, so that a resumed run averages over the same steps.
            if saves or validates or progress.step % config.logging_steps == 0:
                means = torch.stack([sum(losses) / len(losses), sum(norms) / len(norms)])
                means = (distributed.sum_over_ranks(means) / distributed.world_size()).tolist()
                progress.examples += examples
                record(
                    {
                        "loss/total": means[0],
                        "gradient_norm": means[1],
                        "learning_rate": schedule.get_last_lr()[0],
                        "examples": progress.examples,
                        "examples_per_second": examples / (time.monotonic() - began),
                        "examples_skipped": int(distributed.sum_over_ranks(torch.tensor(loader.skipped))),
                    }
                )
                bar.set_postfix(loss=f"{means[0]:.4g}")
                losses, norms, examples = [], [], 0
            if validates:
                some = batches.evaluation(config.data.validation_examples)
                record({"validation/denoising_error": denoising_error(unet, scheduler, vae, some, config.seed)})
            if saves:
                position = {"readers": readers, "state": loader.state_dict()}
                save_checkpoint(accelerator, output, progress.step, position, config.checkpoints_total_limit)
            if not losses:
                began = time.monotonic()
            if ends:
                break
    bar.close()
    if ema is not None:
        ema.copy_to(unet.parameters())
    error = None
    if batches.validates:  # of the weights that are published, on all held-out images
        error = denoising_error(unet, scheduler, vae, batches.evaluation(), config.seed)
    folder = output / "pipeline"
    with distributed.failing_together():
        if accelerator.is_main_process:
            vae.register_to_config(force_not_quantize=not config.quantize)
            pipeline = LDMPipeline(vqvae=vae, unet=unet.eval(), scheduler=scheduler)
            finish(config, pipeline, error, progress.step, folder)
    accelerator.end_training()
    return folder


def build_scheduler(config: DiffusionConfig) -> DDIMScheduler:
    try:
        scheduler = DDIMScheduler(**{"clip_sample": False} | config.scheduler)  # latents lie outside of [-1, 1]
    except (TypeError, NotImplementedError) as error:
        raise ValueError(f"scheduler={config.scheduler} is no DDIMScheduler: {error}") from error
    prediction, steps = scheduler.config.prediction_type, scheduler.config.num_train_timesteps
    require(prediction in PREDICTIONS, "scheduler.prediction_type", prediction, f"one of {', '.join(PREDICTIONS)}")
    wanted = config.num_inference_steps
    require(wanted <= steps, "num_inference_steps", wanted, f"at most scheduler.num_train_timesteps={steps}")
    return scheduler


def build_unet(config: DiffusionConfig, vae: AutoencoderVP) -> UNet2DModel:
    """A new UNet for latents of the sizes that it will be given."""
    factor, channels, data = vae.downsample_factor, vae.config.latent_channels, config.data
    follows = {"sample_size": data.size // factor, "in_channels": channels, "out_channels": channels}
    try:
        unet = UNet2DModel(**follows | config.unet)
    except (TypeError, ValueError) as error:
        raise ValueError(f"unet={config.unet} is no UNet2DModel: {error}") from error
    halvings = len(unet.config.block_out_channels) - 1
    for name, size in {"data.size": data.size, "data.validation_size": data.validation_size or data.size}.items():
        require(size % factor == 0, name, size, f"a multiple of the tokenizer's factor {factor}")
        if size // factor % 2**halvings:
            raise ValueError(
                f"{name}={size} makes latents of {size // factor} x {size // factor}, which the UNet cannot halve "
                f"{halvings} times; give a multiple of {factor * 2**halvings}, or fewer unet.block_out_channels"
            )
    return unet


@torch.no_grad()
def latents_of(vae: AutoencoderVP, pixel_values: Tensor) -> Tensor:
    """[B, d, h, w] continuous latents of unit variance."""
    return vae.encode(pixel_values).latents * vae.config.scaling_factor


def denoising_loss(
    model: torch.nn.Module, scheduler: DDIMScheduler, latents: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """The mean squared error of the model's predictions for latents at random times with random noise.

    Args:
        generator: a generator of the CPU; None draws from the global generator of the latents' device.
    """
    device = latents.device if generator is None else "cpu"
    noise = torch.randn(latents.shape, generator=generator, device=device).to(latents.device)
    steps = scheduler.config.num_train_timesteps
    times = torch.randint(steps, (len(latents),), generator=generator, device=device).to(latents.device)
    predicted = model(scheduler.add_noise(latents, noise, times), times).sample
    target = {"epsilon": noise, "sample": latents}.get(scheduler.config.prediction_type)
    if target is None:
        target = scheduler.get_velocity(latents, noise, times)
    return functional.mse_loss(predicted.float(), target.float())


@torch.no_grad()
def denoising_error(
    unet: UNet2DModel, scheduler: DDIMScheduler, vae: AutoencoderVP, batches: Iterator[Tensor], seed: int
) -> float:
    """The mean loss on held-out images, at the same times and with the same noise each time; NaN without images."""
    generator = torch.Generator().manual_seed(seed)
    unet.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    with distributed.failing_together():
        for batch in batches:
            loss = denoising_loss(unet, scheduler, latents_of(vae, batch), generator)
            sums += torch.tensor([float(loss) * len(batch), len(batch)], dtype=torch.float64)
    unet.train()
    total, count = distributed.sum_over_ranks(sums).tolist()
    return total / count if count else math.nan


def finish(config: DiffusionConfig, pipeline: LDMPipeline, error: float | None, steps: int, folder: Path) -> None:
    """Save the pipeline with samples, results and card, print what was measured, and push if asked."""
    vae, unet = pipeline.vqvae, pipeline.unet
    has_codes = vae.quantize.has_codes and vae.quantize.config.fitted
    pipeline.save_pretrained(folder)
    open_to_usual_readers(folder)
    if config.samples:
        Image.fromarray(samples(pipeline, config, has_codes)).save(folder / "samples.png")
    results = {
        "method": "diffusion",
        "parameters": sum(weights.numel() for weights in unet.parameters()),
        "size": config.data.size,
        "latents": [vae.config.latent_channels, unet.config.sample_size, unet.config.sample_size],
        "quantize": config.quantize,
        "has_codes": has_codes,
        "dataset": config.data.name,
        "split": config.data.split,
        "tokenizer": config.tokenizer,
        "steps": steps,
        "evaluation": None if error is None else {"denoising_error": error},
        "settings": dataclasses.asdict(config),
        "versions": {name: version(name) for name in ("vpvae_hf", "torch", "diffusers")},
    }
    write_pipeline_results(folder, results, repo_id=config.hub_model_id)
    measured = "" if error is None else f"denoising error {error:.4f}; "
    print(f'{measured}pipeline: {folder}; LDMPipeline.from_pretrained("{folder}") after import vpvae_hf')
    if config.push_to_hub:
        print(f"pushed to {push_pipeline(folder, config.hub_model_id, private=config.hub_private)}")


def samples(pipeline: LDMPipeline, config: DiffusionConfig, has_codes: bool):
    """A picture of generated images: not quantized in the upper row, through codes, if there are any, in the lower."""
    vae, rows = pipeline.vqvae, {}
    kept = vae.config.force_not_quantize
    # The pipeline cannot decode the same latents twice, so it makes them twice from one seed.
    for as_they_are in [True, False] if has_codes else [True]:
        vae.register_to_config(force_not_quantize=as_they_are)
        noise, steps = torch.Generator().manual_seed(config.seed), config.num_inference_steps
        images = pipeline(config.samples, noise, num_inference_steps=steps, output_type="np").images
        label = "not quantized" if as_they_are else f"{vae.quantize.codebook_size} codes"
        rows[label] = torch.from_numpy(images).movedim(-1, 1) * 2 - 1
    vae.register_to_config(force_not_quantize=kept)
    return image_grid([*rows.values()], [*rows], shown_side=SHOWN_SIDE)


if __name__ == "__main__":
    sys.exit(run_recipe(DiffusionConfig, train, __doc__, sys.argv[1:]))
