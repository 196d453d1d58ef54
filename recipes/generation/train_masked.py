"""Train a transformer that fills in masked codes: `accelerate launch recipes/generation/train_masked.py --config FILE`.

`vpvae tokenize` writes the codes. `--help` lists all settings. The script stands alone: copy it, change what you like.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AmusedScheduler, BlockRefinementScheduler
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import AutoModelForMaskedLM, PreTrainedModel, Trainer, TrainingArguments, set_seed

from vpvae_hf import CodeVocabulary, VPMaskedPipeline, distributed
from vpvae_hf.data import CodeFolder
from vpvae_hf.generation import (
    IGNORED,
    CausalBatches,
    CodeLikelihood,
    CodeSequences,
    MaskedBatches,
    check_direction,
    drop_conditions,
    load_code_tokenizer,
    mask_codes,
    masked_likelihood,
    new_transformer,
    text_tokenizer_of,
    vocabulary_of,
    write_samples,
)
from vpvae_hf.generation.config import CodeDataConfig
from vpvae_hf.hub import push_pipeline, write_pipeline_results
from vpvae_hf.settings import require
from vpvae_hf.training.checkpoints import prepare_output, resume_hint
from vpvae_hf.training.config import RunConfig, option, require_settings, run_recipe
from vpvae_hf.training.hardware import find_hardware, mixed_precision
from vpvae_hf.training.trackers import PROJECT, installed_trackers
from vpvae_hf.training.trainer import checkpoint_activations

# About 25 million weights. transformers' own defaults are those of the largest models.
MODERNBERT = {
    "kind": "modernbert", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8,
    "num_attention_heads": 8, "layer_types": ["full_attention"] * 8,
}  # fmt: skip
# Settings that transformers names as we do.
SAME_NAMES = (
    "gradient_accumulation_steps", "learning_rate", "adam_beta1", "adam_beta2", "max_grad_norm", "seed",
    "logging_steps",
)  # fmt: skip
STATE = "trainer_state.json"  # the last file that transformers writes into a checkpoint


@dataclass
class MaskedConfig(RunConfig):
    """A training run of a masked language model over codes, such as modernbert or bert."""

    transformer: dict[str, Any] = option(
        MODERNBERT,
        "kind, which is transformers' model type, and arguments of its config; ids and positions follow from the codes",
    )
    pretrained: str | None = option(None, "folder or hub id of a transformer to start from, in place of a new one")
    tokenizer: str | None = option(None, "folder or hub id of the tokenizer; the one that made the codes if null")
    data: CodeDataConfig = field(default_factory=CodeDataConfig)
    samples: int = option(8, "images or clips to generate at the end")
    scheduler: Literal["amused", "block_refinement"] = option(
        "amused", "diffusers' scheduler that the pipeline generates with"
    )

    def __post_init__(self):
        super().__post_init__()
        if "kind" not in self.transformer:
            raise ValueError(f"transformer must name its kind, e.g. {{kind: modernbert}}, got {self.transformer}")
        require(self.samples >= 0, "samples", self.samples, "at least 0")


class CodeTrainer(Trainer):
    """transformers' trainer, with the loss of masked codes among codes alone, and validation by bits per token."""

    def __init__(self, *, config: MaskedConfig, vocabulary: CodeVocabulary, **parts):
        self.config, self._vocabulary = config, vocabulary
        self.likelihood: CodeLikelihood | None = None
        self.measured_at: int | None = None
        super().__init__(args=training_arguments(config), data_collator=MaskedBatches(vocabulary), **parts)
        self._noise = BlockRefinementScheduler()
        self.loss_is_scaled_for_ga = False  # the loss is a mean over the masked codes of a batch

    def compute_loss(self, model, inputs, **unused) -> Tensor:
        # Random numbers are drawn here, not when batches are made a step ahead, so that a resumed run draws the same.
        inputs = drop_conditions(inputs, self._vocabulary, self.config.data.drop_condition)
        inputs = mask_codes(inputs, self._vocabulary, self._noise)
        labels, first = inputs.pop("labels"), self._vocabulary.first_code
        logits = model(**inputs).logits[..., first : self._vocabulary.begin].flatten(0, 1).float()
        codes = torch.where(labels == IGNORED, labels, labels - first).flatten()
        masked = (codes != IGNORED).sum().clamp(min=1)  # with few codes, often none is masked
        return functional.cross_entropy(logits, codes, ignore_index=IGNORED, reduction="sum") / masked

    def evaluate(self, *unused, **also_unused) -> dict[str, float]:
        """Measure the held-out codes, unless this was done at this step; every rank measures all of them."""
        if self.measured_at == self.state.global_step:
            return {}
        batches = DataLoader(
            self.eval_dataset,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=CausalBatches(self._vocabulary),
            generator=torch.Generator(),  # without it the loader would draw from training's generator
        )
        self.likelihood = masked_likelihood(self.accelerator.unwrap_model(self.model), batches, self._vocabulary)
        self.measured_at = self.state.global_step
        names = ("bits_per_token", "unigram_bits_per_token")
        metrics = {f"eval_{name}": getattr(self.likelihood, name) for name in names}
        self.log(metrics)
        return metrics


def training_arguments(config: MaskedConfig) -> TrainingArguments:
    """The run's settings under transformers' names."""
    validates, precision = config.data.validation_tokens is not None, mixed_precision(config, find_hardware())
    arguments = TrainingArguments(
        output_dir=config.output_dir,
        max_steps=config.max_train_steps,
        per_device_train_batch_size=config.train_batch_size,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=config.lr_warmup_steps,
        weight_decay=config.adam_weight_decay,
        **{name: getattr(config, name) for name in SAME_NAMES},
        fp16=precision == "fp16",
        bf16=precision == "bf16",
        eval_strategy="steps" if validates else "no",
        eval_steps=config.validation_steps if validates else None,
        save_steps=config.checkpointing_steps,
        save_total_limit=config.checkpoints_total_limit,
        report_to=installed_trackers(config) or "none",
        project=PROJECT,
        run_name=Path(config.output_dir).name,
        disable_tqdm=not sys.stderr.isatty(),  # in a file, a bar that redraws itself is one endless line
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.accelerator.is_available(),
        remove_unused_columns=False,
    )
    if precision is not None:
        arguments.mixed_precision = precision  # fp16=bf16=False alone would leave accelerate's own "bf16"
    return arguments


def build_model(config: MaskedConfig, start: str | None, vocabulary: CodeVocabulary) -> PreTrainedModel:
    """A new model, or one from the folder or hub id `start`, with room for the vocabulary's ids."""
    if start is None:
        model = new_transformer(AutoModelForMaskedLM, config.transformer, vocabulary)
    else:
        model = AutoModelForMaskedLM.from_pretrained(start)
        vocabulary.check_start(model)
        model.resize_token_embeddings(max(vocabulary.size, model.get_input_embeddings().num_embeddings))
    vocabulary.write_to(model)
    check_direction(model, vocabulary, causal=False)
    if config.gradient_checkpointing:
        checkpoint_activations(model)
    return model


def train(config: MaskedConfig) -> Path:
    """Train, measure, generate samples, save, and push if asked; returns the pipeline's folder.

    Every rank of a job calls this. It writes into the output folder: checkpoint-STEP, settings.json, trackers' logs,
    and the pipeline with its card, results.json and samples.
    """
    require_settings(config, "output_dir", "data.tokens")
    output, data = Path(config.output_dir), config.data
    codes, held_out = CodeFolder(data.tokens, data.condition_column), None
    if data.validation_tokens is not None:
        held_out = CodeFolder(data.validation_tokens, data.condition_column)
        codes.check_same_codes(held_out)
    if codes.is_text and config.pretrained is not None and data.text_tokenizer is None:
        raise ValueError("a pretrained model that takes texts needs its own text tokenizer: add --data.text_tokenizer")
    texts = text_tokenizer_of(codes, data.text_tokenizer, size=data.text_vocabulary)
    vocabulary = vocabulary_of(codes, data.window, texts, data.text_length)
    tokenizer = load_code_tokenizer(codes, config.tokenizer)
    vocabulary.check_tokenizer(tokenizer)
    installed_trackers(config)  # so that a wrong one is refused before a former run is deleted
    checkpoint = prepare_output(output, config, outputs=("pipeline",), checkpoint_file=STATE)
    step = 0 if checkpoint is None else json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["global_step"]
    ended = step >= config.max_train_steps
    set_seed(config.seed)
    trainer = CodeTrainer(
        config=config,
        vocabulary=vocabulary,
        model=build_model(config, str(checkpoint) if ended else config.pretrained, vocabulary),
        train_dataset=CodeSequences(codes, vocabulary, texts),
        eval_dataset=None if held_out is None else CodeSequences(held_out, vocabulary, texts),
    )
    start = "" if checkpoint is None else f"; going on from {checkpoint}"
    trainer.accelerator.print(
        f"{trainer.model.num_parameters() / 1e6:.1f} million weights, {vocabulary.codebook_size} codes, "
        f"{len(trainer.train_dataset)} sequences of {vocabulary.length}; results in {output}{start}"
    )
    if ended:
        trainer.state.global_step = step  # transformers would take one more step
    else:
        with resume_hint(output, lambda: trainer.state.global_step, STATE):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if held_out is not None:
        trainer.evaluate()
    with distributed.failing_together():
        if trainer.is_world_process_zero():
            scheduler = BlockRefinementScheduler()
            if config.scheduler == "amused":
                scheduler = AmusedScheduler(mask_token_id=vocabulary.codebook_size)
            pipeline = VPMaskedPipeline(tokenizer.to(trainer.model.device), trainer.model.eval(), scheduler, texts)
            finish(pipeline, codes, trainer)
    trainer.accelerator.end_training()
    return output / "pipeline"


def finish(pipeline: VPMaskedPipeline, codes: CodeFolder, trainer: CodeTrainer) -> None:
    """Save the pipeline with samples, results and card, print what was measured, and push if asked."""
    config, folder = trainer.config, Path(trainer.config.output_dir, "pipeline")
    pipeline.save_pretrained(folder)
    conditions = None
    if config.samples:
        conditions = write_samples(pipeline, folder, codes, number=config.samples, seed=config.seed)
    model, likelihood, manifest = pipeline.transformer, trainer.likelihood, codes.manifest
    results = {
        "method": "masked",
        "model_type": model.config.model_type,
        "parameters": model.num_parameters(),
        "vocabulary": dataclasses.asdict(pipeline.vocabulary),
        "sample_conditions": conditions,
        "dataset": manifest["dataset"],
        "split": manifest["split"],
        "tokenizer": config.tokenizer or manifest["tokenizer"],
        "steps": trainer.state.global_step,
        "evaluation": None if likelihood is None else likelihood.summary(manifest),
        "settings": dataclasses.asdict(config),
        "versions": {name: version(name) for name in ("vpvae_hf", "torch", "transformers", "diffusers")},
    }
    write_pipeline_results(folder, results, repo_id=config.hub_model_id)
    if likelihood is not None:
        print(likelihood.describe(manifest, bound=True))
    print(f'pipeline: {folder}; {type(pipeline).__name__}.from_pretrained("{folder}")')
    if config.push_to_hub:
        print(f"pushed to {push_pipeline(folder, config.hub_model_id, private=config.hub_private)}")


if __name__ == "__main__":
    sys.exit(run_recipe(MaskedConfig, train, __doc__, sys.argv[1:]))
