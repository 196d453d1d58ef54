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
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from vpvae_hf import distributed
from vpvae_hf.data import CodeFolder
from vpvae_hf.evaluation import image_grid
from vpvae_hf.generation import (
    IGNORED,
    CausalBatches,
    CodeLikelihood,
    CodeSequences,
    CodeVocabulary,
    MaskedBatches,
    VPAudioGenerationPipeline,
    VPImageGenerationPipeline,
    VPMaskedAudioPipeline,
    VPMaskedImagePipeline,
    causal_likelihood,
    drop_conditions,
    mask_codes,
    masked_likelihood,
)
from vpvae_hf.hub import push_pipeline, write_pipeline_results
from vpvae_hf.models import AutoencoderVP, VPCodecModel

from .generator_config import AutoregressiveConfig, GeneratorConfig
from .job import require_settings
from .loop import checkpoint_activations
from .output_folder import prepare_output

_STATE = "trainer_state.json"  # the last that a checkpoint gets
# What decides the ids and the number of positions of a new model, whatever its type calls the latter.
_POSITIONS = ("n_positions", "max_position_embeddings")
_TEXT_IDS = ("cls_token_id", "sep_token_id")


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
    model = _model(dataclasses.replace(config, pretrained=str(checkpoint)) if ended else config, vocabulary)
    if config.gradient_checkpointing:
        checkpoint_activations(model)
    trainer = _CodeTrainer(model, arguments, config, vocabulary, folder, held_out)
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


class _CodeTrainer(Trainer):
    """transformers' trainer, with the loss over codes alone where they are masked, and bits a token as validation."""

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        config: GeneratorConfig,
        vocabulary: CodeVocabulary,
        folder: CodeFolder,
        held_out: CodeFolder | None,
    ):
        self._vocabulary, self._causal = vocabulary, isinstance(config, AutoregressiveConfig)
        self._drop, self._scheduler = config.data.drop_condition, BlockRefinementScheduler()
        self._measured = None if held_out is None else CodeSequences(held_out, vocabulary)
        self._latest: tuple[int, CodeLikelihood] | None = None
        super().__init__(
            model=model,
            args=arguments,
            data_collator=(CausalBatches if self._causal else MaskedBatches)(vocabulary),
            train_dataset=CodeSequences(folder, vocabulary),
            eval_dataset=self._measured,
        )
        # Means over a batch, as of what is masked in it.
        self.loss_is_scaled_for_ga = None if self._causal else False

    def compute_loss(
        self, model, inputs, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor | tuple[Tensor, Any]:
        # Drawn here and not when batches are made, which is a step ahead, so that a resumed run draws the same.
        inputs = drop_conditions(inputs, self._vocabulary, self._drop)
        if self._causal:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = mask_codes(inputs, self._vocabulary, self._scheduler)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        first, last = self._vocabulary.first_code, self._vocabulary.begin
        logits = outputs.logits[..., first:last].flatten(0, 1).float()
        codes = torch.where(labels == IGNORED, labels, labels - first).flatten()
        masked = (codes != IGNORED).sum().clamp(min=1)
        loss = functional.cross_entropy(logits, codes, ignore_index=IGNORED, reduction="sum") / masked
        return (loss, outputs) if return_outputs else loss

    def likelihood(self) -> CodeLikelihood:
        """Of the codes that are held out; every rank measures all of them."""
        if self._latest is not None and self._latest[0] == self.state.global_step:
            return self._latest[1]
        batches = DataLoader(
            self._measured,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=CausalBatches(self._vocabulary),
            generator=torch.Generator(),  # or it would draw from the one that training draws from
        )
        measure = causal_likelihood if self._causal else masked_likelihood
        likelihood = measure(self.accelerator.unwrap_model(self.model), batches, self._vocabulary)
        self._latest = self.state.global_step, likelihood
        return likelihood

    def evaluate(self, *unused, **also_unused) -> dict[str, float]:
        seen = self._latest is not None and self._latest[0] == self.state.global_step
        likelihood = self.likelihood()
        figures = {
            "eval_bits_per_token": likelihood.bits_per_token,
            "eval_unigram_bits_per_token": likelihood.unigram_bits_per_token,
        }
        if not seen:
            self.log(figures)
        return figures


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
        fingerprint=folder.manifest["code_fingerprint"],
    )


def _model(config: GeneratorConfig, vocabulary: CodeVocabulary) -> PreTrainedModel:
    causal = isinstance(config, AutoregressiveConfig)
    kind = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    if config.pretrained is not None:
        model = kind.from_pretrained(config.pretrained)
        vocabulary.check_start(model)
        model.resize_token_embeddings(max(vocabulary.size, model.get_input_embeddings().num_embeddings))
    else:
        model = _new_model(kind, dict(config.transformer), vocabulary)
    vocabulary.attach(model)
    _check_direction(model, vocabulary, causal=causal)
    return model


def _new_model(kind, settings: dict[str, Any], vocabulary: CodeVocabulary) -> PreTrainedModel:
    name = settings.pop("kind")
    try:
        defaults = AutoConfig.for_model(name)
    except ValueError as error:
        raise ValueError(f"transformer: transformers has no kind {name!r}") from error
    for field in settings:
        if not hasattr(defaults, field):
            raise ValueError(f"transformer.{field} is no argument of {type(defaults).__name__}")
    special = {"bos_token_id": vocabulary.begin, "eos_token_id": vocabulary.end, "pad_token_id": vocabulary.pad}
    # Some models have more special ids, whose defaults are ids of texts.
    special |= {field: None for field in _TEXT_IDS if hasattr(defaults, field)}
    shape = {"vocab_size": vocabulary.size}
    positions = next((field for field in _POSITIONS if hasattr(defaults, field)), None)
    if positions is not None:
        shape[positions] = vocabulary.length + 3
    try:
        return kind.from_config(AutoConfig.for_model(name, **shape | special | settings))
    # Whatever is raised: each kind has its own way to find that its arguments, or the ids of codes, do not fit.
    except Exception as error:
        raise ValueError(f"a transformer of kind {name!r} cannot be made with {shape | settings}: {error}") from error


@torch.no_grad()
def _check_direction(model: PreTrainedModel, vocabulary: CodeVocabulary, *, causal: bool) -> None:
    """See that a causal model does not read what it is to predict, and that another reads both ways."""
    ids = torch.full((2, 4), vocabulary.first_code)
    ids[1, -1] = vocabulary.mask
    was_training = model.training
    first, second = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0]
    model.train(was_training)
    if causal and not torch.allclose(first, second, atol=1e-4):
        raise ValueError(
            f"a {type(model).__name__} of these settings reads codes that it is to predict; name a causal kind, such "
            "as llama, or set is_decoder: true where the kind has it"
        )
    if not causal and torch.equal(first, second):
        raise ValueError(
            f"a {type(model).__name__} reads one way only; name a kind that reads both, such as modernbert"
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
    trainer: Trainer,
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
