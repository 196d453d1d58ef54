"""transformers' trainer for codes: their loss, and bits a token as validation."""

from typing import Any

import torch
from diffusers import BlockRefinementScheduler
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments

from vpvae_hf.data import CodeFolder
from vpvae_hf.generation import (
    IGNORED,
    CausalBatches,
    CodeLikelihood,
    CodeSequences,
    CodeVocabulary,
    MaskedBatches,
    causal_likelihood,
    drop_conditions,
    mask_codes,
    masked_likelihood,
)

from .generator_config import AutoregressiveConfig, GeneratorConfig


class CodeTrainer(Trainer):
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
