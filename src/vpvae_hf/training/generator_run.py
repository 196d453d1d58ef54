"""A training run of a transformer over codes, from files of codes to a saved pipeline that generates."""

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AmusedScheduler, BlockRefinementScheduler
from PIL import Image
from transformers import PreTrainedModel, TrainingArguments, set_seed

from vpvae_hf import distributed
from vpvae_hf.data import CodeFolder
from vpvae_hf.generation import (
    CodeLikelihood,
    CodeVocabulary,
    VPAudioGenerationPipeline,
    VPImageGenerationPipeline,
    VPMaskedAudioPipeline,
    VPMaskedImagePipeline,
)
from vpvae_hf.hub import push_pipeline, write_pipeline_results
from vpvae_hf.metrics import image_grid
from vpvae_hf.models import AutoencoderVP, VPCodecModel

from .code_trainer import CodeTrainer
from .generator_config import AutoregressiveConfig, GeneratorConfig
from .generator_model import transformer_for
from .job import require_settings
from .loop import checkpoint_activations
from .output_folder import prepare_output

_STATE = "trainer_state.json"  # the last that a checkpoint gets


def train_generator(config: GeneratorConfig) -> Path:
    """Train, measure, generate samples, save, and push where asked; gives the pipeline's folder.

    Every rank of a job calls this. What is written in the output folder: checkpoint-STEP, settings.json, trackers'
    logs, and the pipeline with its card, results.json and samples.

    Args:
        config: an `AutoregressiveConfig` or a `MaskedConfig`.

    Raises:
        ValueError: settings that miss or contradict something, codes of another tokenizer, or too small a model.
        FileExistsError: the output folder holds another run.
        FileNotFoundError: no such folder of codes, tokenizer, model or checkpoint.
    """
    require_settings(config, "output_dir", "data.tokens")
    output = Path(config.output_dir)
    folder = CodeFolder(config.data.tokens, config.data.condition_column)
    held_out = None
    if config.data.validation_tokens is not None:
        held_out = CodeFolder(config.data.validation_tokens, config.data.condition_column)
        folder.check_same_codes(held_out)
    tokenizer = _load_tokenizer(config, folder)
    vocabulary = _vocabulary(config, folder)
    vocabulary.check_tokenizer(tokenizer)
    arguments = _arguments(config)
    checkpoint = prepare_output(output, config, made=("pipeline",), marker=_STATE)
    # transformers' trainer would take a step more.
    ended = checkpoint is not None and _step_of(checkpoint) >= config.max_train_steps
    set_seed(config.seed)
    model = transformer_for(dataclasses.replace(config, pretrained=str(checkpoint)) if ended else config, vocabulary)
    if config.gradient_checkpointing:
        checkpoint_activations(model)
    trainer = CodeTrainer(model, arguments, config, vocabulary, folder, held_out)
    if trainer.is_world_process_zero():
        start = "" if checkpoint is None else f"; going on from {checkpoint}"
        print(
            f"{model.num_parameters() / 1e6:.1f} million weights, {vocabulary.codebook_size} codes, sequences of "
            f"{vocabulary.length}; {len(trainer.train_dataset)} of them; results in {output}{start}"
        )
    if ended:
        trainer.state.global_step = _step_of(checkpoint)
    else:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    model = trainer.model.eval()
    likelihood = trainer.likelihood() if held_out is not None else None
    pipeline_folder = output / "pipeline"
    with distributed.failing_together():
        if trainer.is_world_process_zero():
            pipeline = _pipeline(config, tokenizer.to(model.device), model)
            pipeline.save_pretrained(pipeline_folder)
            _write_samples(pipeline, pipeline_folder, config, folder, vocabulary)
            results = _results(config, folder, vocabulary, trainer, likelihood)
            write_pipeline_results(pipeline_folder, results, repo_id=config.hub_model_id)
            print(_summary(results, pipeline_folder, pipeline))
            if config.push_to_hub:
                print(f"pushed to {push_pipeline(pipeline_folder, config.hub_model_id, private=config.hub_private)}")
    trainer.accelerator.end_training()
    return pipeline_folder


def _load_tokenizer(config: GeneratorConfig, folder: CodeFolder):
    kind = VPCodecModel if folder.is_audio else AutoencoderVP
    if config.tokenizer:
        return kind.from_pretrained(config.tokenizer).eval()
    name, revision = folder.manifest["tokenizer"], folder.manifest["tokenizer_revision"]
    try:
        return kind.from_pretrained(name, **({} if revision is None else {"revision": revision})).eval()
    except (FileNotFoundError, PermissionError, ConnectionError, ValueError) as error:
        raise type(error)(
            f"the tokenizer that the codes were made with, {name}, cannot be loaded; name it with --tokenizer ({error})"
        ) from error


def _vocabulary(config: GeneratorConfig, folder: CodeFolder) -> CodeVocabulary:
    grid = folder.grid
    if config.data.window is not None:
        if not folder.is_audio:
            raise ValueError(f"data.window={config.data.window} is for audio; images are always whole, leave it out")
        grid = (min(config.data.window, grid[0]),)
    return CodeVocabulary(
        codebook_size=folder.manifest["codebook_size"],
        grid=grid,
        code_groups=folder.manifest["code_groups"],
        condition_size=folder.condition_size,
        fingerprint=folder.manifest["fingerprint"],
    )


def _step_of(checkpoint: Path) -> int:
    return json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))["global_step"]


def _arguments(config: GeneratorConfig) -> TrainingArguments:
    validates = config.data.validation_tokens is not None
    arguments = TrainingArguments(
        output_dir=config.output_dir,
        max_steps=config.max_train_steps,
        per_device_train_batch_size=config.train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=config.lr_warmup_steps,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        weight_decay=config.adam_weight_decay,
        max_grad_norm=config.max_grad_norm,
        fp16=config.mixed_precision == "fp16",
        bf16=config.mixed_precision == "bf16",
        seed=config.seed,
        logging_steps=config.logging_steps,
        eval_strategy="steps" if validates else "no",
        eval_steps=config.validation_steps if validates else None,
        save_steps=config.checkpointing_steps,
        save_total_limit=config.checkpoints_total_limit,
        report_to=list(config.report_to) or "none",
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.accelerator.is_available(),
        remove_unused_columns=False,
    )
    if config.mixed_precision is not None:
        arguments.mixed_precision = config.mixed_precision  # "no" would leave accelerate's own setting
    return arguments


def _pipeline(config: GeneratorConfig, tokenizer, model: PreTrainedModel):
    audio = isinstance(tokenizer, VPCodecModel)
    if isinstance(config, AutoregressiveConfig):
        return (VPAudioGenerationPipeline if audio else VPImageGenerationPipeline)(tokenizer, model)
    if config.scheduler == "amused":
        scheduler = AmusedScheduler(mask_token_id=tokenizer.quantize.codebook_size)
    else:
        scheduler = BlockRefinementScheduler()
    return (VPMaskedAudioPipeline if audio else VPMaskedImagePipeline)(tokenizer, model, scheduler)


def _write_samples(
    pipeline, folder: Path, config: GeneratorConfig, codes: CodeFolder, vocabulary: CodeVocabulary
) -> None:
    """samples.png, or samples.flac one clip after the other; their conditions are those of the first examples."""
    if config.samples == 0:
        return
    generator = torch.Generator().manual_seed(config.seed)
    labels = None
    if vocabulary.condition_size:
        count = len(codes.rows)
        labels = [int(codes.rows[number % count][codes.condition_column]) for number in range(config.samples)]
    if not codes.is_audio:
        made = pipeline(labels, num_images=config.samples, generator=generator, output_type="pt").images
        Image.fromarray(image_grid([made * 2 - 1])).save(folder / "samples.png")
        return
    import soundfile

    made = pipeline(labels, num_clips=config.samples, generator=generator)
    pause = np.zeros(made.sampling_rate // 2, np.float32)
    joined = np.concatenate([part for clip in made.audios for part in (clip, pause)])
    soundfile.write(folder / "samples.flac", joined.clip(-1, 1), made.sampling_rate)


def _results(
    config: GeneratorConfig,
    folder: CodeFolder,
    vocabulary: CodeVocabulary,
    trainer: CodeTrainer,
    likelihood: CodeLikelihood | None,
) -> dict[str, Any]:
    """What the model card tells."""
    manifest = folder.manifest
    measured = None
    if likelihood is not None:
        per_token = likelihood.bits_per_token
        if folder.is_audio:
            signal = {"bits_per_second": per_token * manifest["sampling_rate"] / manifest["hop_length"]}
        else:
            signal = {"bits_per_pixel": per_token / manifest["downsample_factor"] ** 2}
        measured = {
            "tokens": likelihood.tokens,
            "bits_per_token": per_token,
            "unigram_bits_per_token": likelihood.unigram_bits_per_token,
            **signal,
        }
    return {
        "method": "autoregressive" if isinstance(config, AutoregressiveConfig) else "masked",
        "model_type": trainer.model.config.model_type,
        "parameters": trainer.model.num_parameters(),
        "vocabulary": dataclasses.asdict(vocabulary),
        "dataset": manifest["dataset"],
        "split": manifest["split"],
        "tokenizer": config.tokenizer or manifest["tokenizer"],
        "steps": trainer.state.global_step,
        "evaluation": measured,
        "settings": dataclasses.asdict(config),
        "versions": {
            name: importlib.metadata.version(name) for name in ("vpvae_hf", "torch", "transformers", "diffusers")
        },
    }


def _summary(results: dict[str, Any], folder: Path, pipeline) -> str:
    measured, lines = results["evaluation"], []
    if measured is not None:
        bound = "" if results["method"] == "autoregressive" else "at most "
        signal = next(name for name in measured if name.startswith("bits_per_") and name != "bits_per_token")
        lines.append(
            f"{bound}{measured['bits_per_token']:.3f} bits a token on {measured['tokens']} held-out tokens, "
            f"{measured['unigram_bits_per_token']:.3f} by their frequencies alone; "
            f"{measured[signal]:.4g} {signal.replace('_', ' ').replace('per', 'a')}"
        )
    lines.append(f'pipeline: {folder}; {type(pipeline).__name__}.from_pretrained("{folder}")')
    return "\n".join(lines)
