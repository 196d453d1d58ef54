"""A training run from settings to a saved, fitted and measured tokenizer."""

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from vpvae_hf import distributed
from vpvae_hf.bundled import bundled_or_given
from vpvae_hf.hub import push_folder, read_results, write_results
from vpvae_hf.metric_labels import describe_metrics, metric_notes
from vpvae_hf.metrics import ReconstructionQuality
from vpvae_hf.modalities import Batches, Modality, modality_of
from vpvae_hf.modalities.config import TrainingConfig
from vpvae_hf.models.tokenizer import Tokenizer
from vpvae_hf.quantizers.baselines import LearnedCodebook

from .checkpoints import prepare_output, resume_hint
from .config import require_settings
from .fit import CodebookFit, fit_codebook, measure_scaling_factor, require_fittable
from .hardware import compiles, describe, find_hardware, tuned, untuned
from .trackers import end_trackers, start_trackers
from .trainer import Trainer, accelerator_for
from .validation import Validation


def train_tokenizer(config: TrainingConfig) -> Path:
    """Train, fit the codebook on a fresh pass, evaluate, save, and push if asked to; returns the tokenizer's folder.

    Kinds that have codes without a fit are fitted if `codebook.refit` is set. If training starts from a fitted
    tokenizer, its fit is dropped, since it would not match the new latents, and training begins with the learned
    codebook or the even levels. The fit is kept if nothing is trained (`max_train_steps=0`) or if only the decoder is
    trained.

    Every rank of a job calls this. The output folder then holds checkpoint-STEP, metrics.jsonl, pictures of validation
    items, trackers' logs, settings.json, and the tokenizer with its card.

    Args:
        config: the settings of a modality, e.g. an `ImageTrainingConfig`.

    Raises:
        ValueError: settings are missing or contradict each other, or data cannot be read.
        FileExistsError: the output folder holds another run.
        FileNotFoundError: no such data set, model or checkpoint.
    """
    require_settings(config, "output_dir", "data.name")
    modality, output = modality_of(config), Path(config.output_dir)
    accelerator = accelerator_for(config)
    checkpoint = prepare_output(output, config, outputs=("validation", "tokenizer"))
    # Every rank starts from the same weights, then draws its own perturbations.
    set_seed(config.seed)
    compiled = compiles(config, find_hardware())
    model = _model(modality, config, compiled).to(accelerator.device)
    part = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    batches = Batches(modality, model, config.data, batch_size=config.train_batch_size, **part)
    batches.open()
    if config.codebook.start and checkpoint is None:
        _start_codebook(model, batches, config)
    set_seed(config.seed, device_specific=True)
    validation = Validation(modality, model, batches, output, config, accelerator)
    trainer = Trainer(
        model,
        batches.training(config.seed),
        config,
        losses=modality.losses(config, model),
        loss_weights=config.loss_weights,
        adversarial=modality.adversarial(config, model),
        accelerator=accelerator,
        workers=config.data.loader_workers,
        output=output,
        validate=validation.measure if batches.validates else None,
        headline_metrics=modality.headline_metrics,
        # If the decoder alone is trained, it reads real codes and no perturbed latents.
        frozen_modules=[model.quantize] if config.train_only == "decoder" else [],
    )
    if checkpoint is not None:
        trainer.resume(checkpoint)
    accelerator.print(_beginning(modality, model, config, accelerator, checkpoint))
    accelerator.print(describe(accelerator, compiled=compiled))
    start_trackers(accelerator, config, trainer.step)
    survives = compiled and config.torch_compile is None
    with resume_hint(output, lambda: trainer.step), tuned(accelerator.device, survive_compiler=survives):
        trainer.run()
    model.to(memory_format=torch.contiguous_format)  # safetensors supports no other
    fit = _fit(model, batches, config)
    model.eval()
    folder = output / "tokenizer"
    with distributed.failing_together():
        if accelerator.is_main_process:
            model.save_pretrained(folder)  # before it is measured, which takes long and may fail
    quality = validation.measure_all()
    end_trackers(accelerator)
    with distributed.failing_together():
        if accelerator.is_main_process:
            validation.write_examples(folder)
            write_results(folder, _results(modality, model, config, trainer, fit, quality), repo_id=config.hub_model_id)
            accelerator.print(_summary(modality, model, folder, fit, quality))
            if config.push_to_hub:
                accelerator.print(f"pushed to {push_folder(folder, config.hub_model_id, private=config.hub_private)}")
    accelerator.end_training()  # also ends the ranks' process group
    return folder


def _model(modality: Modality, config: TrainingConfig, compiled: bool) -> Tokenizer:
    model = modality.build_model(config)
    if config.train_only is not None and not model.quantize.config.fitted:
        raise ValueError(
            f"train_only={config.train_only} needs a fitted codebook, and {config.model.pretrained} has none; "
            f"fit one first: vpvae fit {config.model.pretrained} --dataset NAME --codebook-size K"
        )
    if _fits(model, config):
        asked = config.codebook
        require_fittable(model.quantize.config, asked.metric, asked.sizes, asked.nested)
    elif config.codebook.sizes is not None:
        raise ValueError(
            f"codebook.sizes={config.codebook.sizes} is for a fit after training, and this run has none: "
            f"{model.quantize.config.kind!r} is fitted only with codebook.refit, and train_only fits nothing; leave it "
            "out"
        )
    if config.train_only == "decoder":
        model.freeze_encoder()
    if compiled:
        # Compiled in place, which keeps the names of weights. The quantizer's search cannot be compiled into a graph.
        for name, part in model.named_children():
            if name in ("encoder", "decoder"):
                part.compile()
    return model


def _fits(model: Tokenizer, config: TrainingConfig) -> bool:
    return config.train_only is None and (model.quantize.needs_fitting or config.codebook.refit)


@untuned()
def _fit(model: Tokenizer, batches: Batches, config: TrainingConfig) -> CodebookFit | None:
    """Fit the codebook, or measure the scaling factor of a quantizer that needs no fit."""
    if config.train_only is not None:
        return None
    seed = config.seed + 1  # another order than in training
    if not _fits(model, config):
        measure_scaling_factor(model, batches.fitting(seed, once=True), across_ranks=True)
        return None
    asked = config.codebook
    how = {"latents_per_code": asked.latents_per_code, "metric": asked.metric, "nested": asked.nested}
    return fit_codebook(model, batches.fitting(seed), asked.sizes, **how, seed=config.seed, across_ranks=True)


@untuned()
def _start_codebook(model: Tokenizer, batches: Batches, config: TrainingConfig) -> None:
    """Start the learned codebook from one that is fitted to the model's latents."""
    if not isinstance(model.quantize, LearnedCodebook):
        kind = model.quantize.config.kind
        raise ValueError(f"codebook.start is for kinds that learn a codebook, vq and simvq, got {kind!r}; leave it out")
    how = {"latents_per_code": config.codebook.latents_per_code, "seed": config.seed}
    size = model.quantize.config.trained_size
    fit_codebook(model, batches.fitting(config.seed + 2), size, **how, across_ranks=True)
    model.quantize.learn_from_fit()  # the trainer drops the fit


def _beginning(
    modality: Modality, model: Tokenizer, config: TrainingConfig, accelerator: Accelerator, checkpoint: Path | None
) -> str:
    weights = sum(parameter.numel() for parameter in model.parameters())
    examples = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
    line = (
        f"{weights / 1e6:.1f} million weights, {modality.resolution(model)}, {model.quantize.config.kind} with "
        f"{model.quantize.codebook_size or 'no'} codes of {model.quantize.latent_dim} dimensions; {examples} "
        f"{modality.train_items} per step on {accelerator.num_processes} x {accelerator.device.type}, "
        f"{config.data.loader_workers} loader processes each; "
        f"results in {config.output_dir}"
    )
    return line if checkpoint is None else f"{line}\ngoing on from {checkpoint}"


def _results(
    modality: Modality,
    model: Tokenizer,
    config: TrainingConfig,
    trainer: Trainer,
    fit: CodebookFit | None,
    quality: ReconstructionQuality | None,
) -> dict[str, Any]:
    """The results that are saved with the tokenizer and shown on its model card."""
    data = config.data
    measured = []
    if quality is not None:
        split = {"dataset": data.validation_name or data.name, "split": data.validation_split}
        counts = {modality.items: quality.items, "tokens": quality.tokens}
        counts |= {"codebook_size": model.quantize.codebook_size} if len(model.codebook_sizes) > 1 else {}
        measured.append({**split, **counts, "metrics": quality.metrics, "undefined": quality.undefined})
    where = {"dataset": data.name, "dataset_config": data.config, "split": data.split, "column": data.column}
    return {
        "training": {
            **where,
            "steps": trainer.step,
            f"{modality.train_items}_seen": trainer.examples,
            "base_model": config.model.start,
            "settings": dataclasses.asdict(config),
            "versions": {name: importlib.metadata.version(name) for name in ("vpvae_hf", "torch", modality.library)},
        },
        "codebook": _told_of_fit(config) if fit is None else dataclasses.asdict(fit),
        "evaluation": measured,
    }


def _told_of_fit(config: TrainingConfig) -> dict[str, Any] | None:
    """The recorded fit of the codebooks that a run keeps from its start; None if there is none.

    It is known only if the tokenizer that the run starts from is in a folder.
    """
    if config.train_only is None:
        return None
    return read_results(Path(bundled_or_given(config.model.pretrained), config.model.subfolder or "")).get("codebook")


def _summary(
    modality: Modality, model: Tokenizer, folder: Path, fit: CodebookFit | None, quality: ReconstructionQuality | None
) -> str:
    lines = []
    if fit is not None:
        lines.append(str(fit))
    if quality is not None:
        metrics = describe_metrics(quality.metrics, [*quality.undefined, "code_usage"])
        lines.append(f"{quality.items} validation {modality.items}: {metrics}")
        lines += metric_notes(quality.metrics, quality.undefined)
    lines.append(f'tokenizer: {folder}; {type(model).__name__}.from_pretrained("{folder}")')
    return "\n".join(lines)
