"""Codes that `vpvae tokenize` wrote, as sequences of ids to train a transformer on.

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
from transformers import PreTrainedTokenizerBase

from vpvae_hf.data import CodeFolder
from vpvae_hf.modalities import load_tokenizer
from vpvae_hf.models.tokenizer import Tokenizer

from .texts import longest_text, text_ids
from .vocabulary import CodeVocabulary

IGNORED = -100  # a label that transformers leaves out of the loss


def load_code_tokenizer(folder: CodeFolder, name: str | None = None) -> Tokenizer:
    """The tokenizer that made a folder of codes, or the named one, on the CPU in eval mode.

    Errors are those of `load_tokenizer`. If the tokenizer has a codebook of the folder's size, that one is selected.
    """
    tokenizer = _loaded(folder, name)
    if (size := folder.manifest["codebook_size"]) in tokenizer.codebook_sizes:
        tokenizer.select_codebook(size)
    return tokenizer


def _loaded(folder: CodeFolder, name: str | None) -> Tokenizer:
    device = torch.device("cpu")
    if name:
        return load_tokenizer(name, device=device)
    name = folder.manifest["tokenizer"]
    try:
        return load_tokenizer(name, folder.manifest["tokenizer_revision"], device)
    except (FileNotFoundError, PermissionError, ConnectionError, ValueError) as error:
        raise type(error)(
            f"the tokenizer that the codes were made with, {name}, cannot be loaded; name it with --tokenizer ({error})"
        ) from error


def vocabulary_of(
    folder: CodeFolder,
    window: int | None = None,
    text_tokenizer: PreTrainedTokenizerBase | None = None,
    text_length: int = 64,
) -> CodeVocabulary:
    """The vocabulary of a folder's codes and conditions.

    Args:
        window: the largest number of tokens in a sequence of audio; None for as many as the longest clip has. Not for
            images.
        text_tokenizer: for a folder whose condition is a text, see `text_tokenizer_of`.
        text_length: the largest number of ids per text; fewer if the longest text has fewer.
    """
    grid = folder.grid
    if window is not None:
        if not folder.is_audio:
            raise ValueError(f"data.window={window} is for audio; images are always whole, leave it out")
        grid = (min(window, grid[0]),)
    size, length = folder.condition_size, 1
    if text_tokenizer is not None:
        size, length = len(text_tokenizer), min(text_length, longest_text(text_tokenizer, folder.texts()))
    return CodeVocabulary(
        codebook_size=folder.manifest["codebook_size"],
        grid=grid,
        code_groups=folder.manifest["code_groups"],
        condition_size=size,
        condition_length=length,
        condition_names=folder.condition_names,
        fingerprint=folder.manifest["fingerprint"],
    )


class CodeSequences(Dataset):
    """Ids of codes; clips longer than the grid are cut into windows, one after the other.

    An item has "ids" [at most L], "condition" (an int, or the ids [P] of a text; -1 if there is none), and whether the
    window "begins" and "ends" a clip, which images always do.

    Args:
        text_tokenizer: the one that the vocabulary was made with, if the folder's condition is a text.
    """

    def __init__(
        self, folder: CodeFolder, vocabulary: CodeVocabulary, text_tokenizer: PreTrainedTokenizerBase | None = None
    ):
        self._folder, self._vocabulary, self._text_tokenizer = folder, vocabulary, text_tokenizer
        self._windows = [(row, 0) for row in range(len(folder.rows))]
        if folder.is_audio:
            step = vocabulary.grid[0]
            self._windows = [(row, start) for row, n in enumerate(folder.lengths) for start in range(0, n, step)]

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row, start = self._windows[number]
        example = self._folder.rows[row]
        codes = self._folder.codes(example)
        ends = True
        if self._folder.is_audio:
            stop = start + self._vocabulary.grid[0]
            codes, ends = codes[start:stop], stop >= len(codes)
        ids = self._vocabulary.encode(codes[None])[0]
        return {"ids": ids, "condition": self._condition(example), "begins": start == 0, "ends": ends}

    def _condition(self, example: Mapping[str, Any]) -> int | Tensor:
        condition = self._folder.condition(example)
        if isinstance(condition, str):
            return text_ids(self._text_tokenizer, [condition], self._vocabulary.condition_length)[0]
        return -1 if condition is None else condition


@dataclass(frozen=True)
class CausalBatches:
    """Collates items to "input_ids", "attention_mask" and "labels" [B, P + L + 1] for a causal language model."""

    vocabulary: CodeVocabulary

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        vocabulary, sequences, labels = self.vocabulary, [], []
        for item in items:
            # A window from the middle of a clip has another id in place of "begin", so that all have as many.
            begin = vocabulary.begin if item["begins"] else vocabulary.unconditional
            before = torch.cat([_condition(vocabulary, item), torch.tensor([begin])])
            after = torch.tensor([vocabulary.end] if item["ends"] else [], dtype=torch.long)
            sequences.append(torch.cat([before, item["ids"], after]))
            labels.append(torch.cat([torch.full_like(before, IGNORED), item["ids"], after]))
        batch = _padded(vocabulary, sequences)
        return batch | {"labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED)}


@dataclass(frozen=True)
class MaskedBatches:
    """Collates items to "input_ids", "attention_mask" and "labels" [B, P + L] for a masked model, nothing masked."""

    vocabulary: CodeVocabulary

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        vocabulary, sequences = self.vocabulary, []
        for item in items:
            condition = _condition(vocabulary, item) if vocabulary.condition_size else vocabulary.condition_ids()[0]
            sequences.append(torch.cat([condition, item["ids"]]))
        batch = _padded(vocabulary, sequences)
        ids = batch["input_ids"]
        return batch | {"labels": torch.where(vocabulary.is_code(ids), ids, IGNORED)}


def drop_conditions(batch: dict[str, Tensor], vocabulary: CodeVocabulary, share: float) -> dict[str, Tensor]:
    """A batch in which each sequence loses its condition with probability `share`, by torch's global generator."""
    if vocabulary.condition_size == 0 or share == 0:
        return batch
    ids = batch["input_ids"].clone()
    dropped = torch.rand(len(ids), device=ids.device) < share
    ids[dropped, : vocabulary.condition_length] = vocabulary.unconditional
    return batch | {"input_ids": ids}


def mask_codes(
    batch: dict[str, Tensor], vocabulary: CodeVocabulary, scheduler: BlockRefinementScheduler
) -> dict[str, Tensor]:
    """A batch of `MaskedBatches` with codes masked; the labels are the masked codes.

    The share of masked codes is drawn for each sequence, uniformly on [0, 1]. All draws are from torch's global
    generator.
    """
    ids, before = batch["input_ids"], vocabulary.condition_length
    where = {"prompt_length": before, "block_length": ids.shape[1] - before}
    noisy, _, masked, _ = scheduler.add_noise(ids, batch["attention_mask"], **where, mask_token_id=vocabulary.mask)
    return batch | {"input_ids": noisy, "labels": torch.where(masked, ids, IGNORED)}


def _condition(vocabulary: CodeVocabulary, item: Mapping[str, Any]) -> Tensor:
    """Ids [P] of an item's condition; [0] if the vocabulary has none."""
    if vocabulary.condition_size == 0:
        return torch.empty(0, dtype=torch.long)
    condition = torch.as_tensor(item["condition"])
    return vocabulary.condition_ids(None if condition.ndim == 0 and condition < 0 else condition[None])[0]


def _padded(vocabulary: CodeVocabulary, sequences: list[Tensor]) -> dict[str, Tensor]:
    ids = pad_sequence(sequences, batch_first=True, padding_value=vocabulary.pad)
    return {"input_ids": ids, "attention_mask": (ids != vocabulary.pad).long()}
