"""A training run from settings to a saved, fitted and measured tokenizer."""

import dataclasses
import importlib.metadata
import logging
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from vpvae_hf import distributed
from vpvae_hf.hub import push_folder, write_results
from vpvae_hf.metrics import ReconstructionQuality

from .audio import AudioModality
from .config import AudioTrainingConfig, ImageTrainingConfig, TrainingConfig
from .fit import CodebookFit, fit_codebook, measure_scaling_factor
from .images import ImageModality
from .job import accelerator_for, require_settings, start_trackers
from .loop import Trainer
from .modality import Modality
from .output_folder import prepare_output, telling_of_checkpoints
from .splits import TrainingData
from .validation import Validation

_log = logging.getLogger(__name__)

_MODALITIES: dict[type[TrainingConfig], Modality] = {
    ImageTrainingConfig: ImageModality(),
    AudioTrainingConfig: AudioModality(),
}


def modality_of(config: TrainingConfig) -> Modality:
    """What the run is about: images or audio."""
    return _MODALITIES[type(config)]


def train_tokenizer(config: TrainingConfig) -> Path:
    """Train, fit the codebook on a fresh pass, evaluate, save, and push where asked; gives the tokenizer's folder.

    Every rank of a job calls this. What is written in the output folder: checkpoint-STEP, metrics.jsonl, pictures of
    validation examples, trackers' logs, settings.json, and the tokenizer with its card.

    Args:
        config: an `ImageTrainingConfig` or an `AudioTrainingConfig`.

    Raises:
        ValueError: settings that miss or contradict something, data that cannot be read.
        FileExistsError: the output folder holds another run.
        FileNotFoundError: no such data set, model or checkpoint.
    """
    require_settings(config, "output_dir", "data.name")
    modality = modality_of(config)
    accelerator = accelerator_for(config)
    output = Path(config.output_dir)
    checkpoint = prepare_output(output, config, made=("validation", "tokenizer"))
    # Every rank the same weights, then each its own perturbations.
    set_seed(config.seed)
    model = modality.build_model(config).to(accelerator.device)
    if config.train_only is not None and not model.quantize.config.fitted:
        raise ValueError(
            f"train_only={config.train_only} needs a fitted codebook, and {config.model.pretrained} has none; "
            f"fit one first: vpvae fit {config.model.pretrained} --dataset NAME --codebook-size K"
        )
    if config.train_only == "decoder":
        model.freeze_encoder()
    if config.torch_compile:
        # In place and without the quantizer, whose search is no graph; the names of weights stay as they are.
        model.encoder.compile()
        model.decoder.compile()
    data = TrainingData(modality, model, config, accelerator)
    set_seed(config.seed, device_specific=True)
    validation = Validation(modality, model, data, output, config, accelerator)
    trainer = Trainer(
        model,
        data.training(),
        config,
        losses=modality.losses(config, model),
        adversarial=modality.adversarial(config),
        accelerator=accelerator,
        output=output,
        validate=validation.measure if data.validates else None,
        # Its decoder is to read real codes, not what stands for them in training.
        kept_in_eval=[model.quantize] if config.train_only == "decoder" else [],
    )
    if checkpoint is not None:
        trainer.resume(checkpoint)
    _announce(modality, accelerator, model, config, checkpoint)
    start_trackers(accelerator, config, trainer.step)
    with telling_of_checkpoints(output, trainer):
        trainer.run()
    folder = _finish(modality, model, data, validation, trainer, config, accelerator)
    accelerator.end_training()  # also ends the ranks' process group
    return folder


def _announce(
    modality: Modality, accelerator: Accelerator, model, config: TrainingConfig, checkpoint: Path | None
) -> None:
    weights = sum(parameter.numel() for parameter in model.parameters())
    examples = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
    accelerator.print(
        f"{weights / 1e6:.1f} million weights, {modality.factor(model)}, {model.quantize.config.kind} with "
        f"{model.quantize.codebook_size or 'no'} codes of {model.quantize.latent_dim} dimensions; {examples} "
        f"{modality.examples} a step on {accelerator.num_processes} x {accelerator.device.type}; "
        f"results in {config.output_dir}"
    )
    if checkpoint is not None:
        accelerator.print(f"going on from {checkpoint}")


def _finish(
    modality: Modality,
    model,
    data: TrainingData,
    validation: Validation,
    trainer: Trainer,
    config: TrainingConfig,
    accelerator: Accelerator,
) -> Path:
    """Fit, evaluate, save with results and card, and push."""
    fit = None
    if model.quantize.needs_fitting and config.train_only is None:
        fit = fit_codebook(
            model,
            data.fitting(),
            latents_per_code=config.codebook.latents_per_code,
            seed=config.seed,
            across_ranks=True,
        )
    elif config.train_only is None:
        measure_scaling_factor(model, data.fitting(once=True), across_ranks=True)
    model.eval()
    folder = Path(config.output_dir) / "tokenizer"
    with distributed.failing_together():
        if accelerator.is_main_process:
            model.save_pretrained(folder)  # before it is measured, which takes long and may fail
    quality = validation.measure_all()
    with distributed.failing_together():
        if accelerator.is_main_process:
            validation.write_examples(folder)
            write_results(folder, _results(modality, fit, quality, trainer, config), repo_id=config.hub_model_id)
            accelerator.print(_summary(modality, fit, quality, folder, model))
            if config.push_to_hub:
                accelerator.print(f"pushed to {push_folder(folder, config.hub_model_id, private=config.hub_private)}")
    return folder


def _results(
    modality: Modality,
    fit: CodebookFit | None,
    quality: ReconstructionQuality | None,
    trainer: Trainer,
    config: TrainingConfig,
) -> dict[str, Any]:
    """What the model card tells."""
    data = config.data
    measured = []
    if quality is not None:
        where = {"dataset": data.validation_name or data.name, "split": data.validation_split}
        counts = {modality.measured: quality.items, "tokens": quality.tokens}
        measured.append({**where, **counts, "metrics": quality.metrics})
    return {
        "training": {
            "dataset": data.name,
            "dataset_config": data.config,
            "split": data.split,
            "column": data.column,
            "steps": trainer.step,
            f"{modality.examples}_seen": trainer.examples,
            "base_model": config.model.pretrained or getattr(config.model, "from_autoencoder_kl", None),
            "settings": dataclasses.asdict(config),
            "versions": {name: importlib.metadata.version(name) for name in ("vpvae_hf", "torch", modality.library)},
        },
        "codebook": None if fit is None else dataclasses.asdict(fit),
        "evaluation": measured,
    }


def _summary(
    modality: Modality, fit: CodebookFit | None, quality: ReconstructionQuality | None, folder: Path, model
) -> str:
    lines = []
    if fit is not None:
        lines.append(f"codebook of {fit.codebook_size} fitted to {fit.fitted_latents} latents")
    if quality is not None:
        lines.append(modality.summary(quality))
        lines += [
            f"{name} is not defined for {count} of them, which its mean leaves out"
            for name, count in quality.undefined.items()
            if count
        ]
    lines += [f'tokenizer: {folder}; {type(model).__name__}.from_pretrained("{folder}")']
    return "\n".join(lines)
