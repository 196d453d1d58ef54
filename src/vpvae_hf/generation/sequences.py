"""Codes as sequences of ids to train a transformer on.

Shapes as in `vocabulary`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import BlockRefinementScheduler
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from .vocabulary import CodeVocabulary

IGNORED = -100  # of labels, for transformers


class CodeSequences(Dataset):
    """Ids of codes; clips longer than the grid are cut into windows, one after the other.

    An item has "ids" [at most L], "condition" (an int, -1 without), and of clips whether the window "begins" and "ends"
    one.

    Args:
        folder: a `vpvae_hf.data.CodeFolder`.
    """

    def __init__(self, folder, vocabulary: CodeVocabulary):
        self._folder, self._vocabulary = folder, vocabulary
        if folder.is_audio:
            window = vocabulary.grid[0]
            self._windows = [
                (row, start) for row, length in enumerate(folder.lengths) for start in range(0, length, window)
            ]
        else:
            self._windows = [(row, 0) for row in range(len(folder.rows))]

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row, start = self._windows[number]
        example = self._folder.rows[row]
        codes = self._folder.codes(example)
        column, ends = self._folder.condition_column, True
        if self._folder.is_audio:
            stop = start + self._vocabulary.grid[0]
            codes, ends = codes[start:stop], stop >= len(codes)
        ids = self._vocabulary.ids_of(codes[None])[0]
        condition = -1 if column is None else int(example[column])
        return {"ids": ids, "condition": condition, "begins": start == 0, "ends": ends}


@dataclass(frozen=True)
class CausalBatches:
    """Batches for a causal language model: "input_ids", "attention_mask" and "labels" [B, P + L + 1]."""

    vocabulary: CodeVocabulary

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        vocabulary, sequences, labels = self.vocabulary, [], []
        for item in items:
            # A window from within a clip has no begin, but an id in its place, so that all have as many.
            begin = vocabulary.begin if item["begins"] else vocabulary.unconditional
            before = torch.cat([_condition(vocabulary, item), torch.tensor([begin])])
            after = torch.tensor([vocabulary.end] if item["ends"] else [], dtype=torch.long)
            sequences.append(torch.cat([before, item["ids"], after]))
            labels.append(torch.cat([torch.full_like(before, IGNORED), item["ids"], after]))
        ids = pad_sequence(sequences, batch_first=True, padding_value=vocabulary.pad)
        return {
            "input_ids": ids,
            "attention_mask": (ids != vocabulary.pad).long(),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }


@dataclass(frozen=True)
class MaskedBatches:
    """Batches for a masked language model, "input_ids", "attention_mask" and "labels" [B, 1 + L], nothing masked."""

    vocabulary: CodeVocabulary

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        vocabulary, sequences = self.vocabulary, []
        for item in items:
            condition = _condition(vocabulary, item)
            condition = condition if len(condition) else torch.tensor([vocabulary.unconditional])
            sequences.append(torch.cat([condition, item["ids"]]))
        ids = pad_sequence(sequences, batch_first=True, padding_value=vocabulary.pad)
        is_code = (ids >= vocabulary.first_code) & (ids < vocabulary.begin)
        return {
            "input_ids": ids,
            "attention_mask": (ids != vocabulary.pad).long(),
            "labels": torch.where(is_code, ids, IGNORED),
        }


def drop_conditions(batch: dict[str, Tensor], vocabulary: CodeVocabulary, share: float) -> dict[str, Tensor]:
    """A batch in which so many sequences, drawn from torch's global generator, lack their condition."""
    if vocabulary.condition_size == 0 or share == 0:
        return batch
    ids = batch["input_ids"].clone()
    ids[torch.rand(len(ids), device=ids.device) < share, 0] = vocabulary.unconditional
    return batch | {"input_ids": ids}


def mask_codes(
    batch: dict[str, Tensor], vocabulary: CodeVocabulary, scheduler: BlockRefinementScheduler
) -> dict[str, Tensor]:
    """A batch of `MaskedBatches` with codes masked; the labels are those.

    Of each sequence a share is masked that is drawn anew, uniformly on [0, 1]. All draws are from torch's global
    generator.
    """
    ids = batch["input_ids"]
    noisy, _, masked, _ = scheduler.add_noise(
        ids, batch["attention_mask"], prompt_length=1, block_length=ids.shape[1] - 1, mask_token_id=vocabulary.mask
    )
    return batch | {"input_ids": noisy, "labels": torch.where(masked, ids, IGNORED)}


def _condition(vocabulary: CodeVocabulary, item: Mapping[str, Any]) -> Tensor:
    """Ids [1] of an item's condition; [0] where the vocabulary has none."""
    if vocabulary.condition_size == 0:
        return torch.empty(0, dtype=torch.long)
    return vocabulary.condition_ids(torch.tensor([item["condition"]]))[0]
