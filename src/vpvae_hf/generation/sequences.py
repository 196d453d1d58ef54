"""Files of codes as sequences of ids to train a transformer on.

Shapes as in `vocabulary`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import BlockRefinementScheduler
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from .vocabulary import CodeVocabulary

_MANIFEST = "tokenizer.json"
IGNORED = -100  # of labels, for transformers


class CodeFolder:
    """The codes that `vpvae tokenize` wrote.

    Args:
        folder: with tokenizer.json and data/*.parquet.
        condition_column: whole numbers, such as classes, that go before the codes; None for none.

    Attributes:
        manifest: content of tokenizer.json.
        rows: the data set, on disk.
        is_audio: whether they are of clips.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no codes.
        ValueError: the codes are not complete, or there is no such column of whole numbers.
    """

    def __init__(self, folder: str | Path, condition_column: str | None = None):
        from datasets import Value, load_dataset

        folder = Path(folder)
        if not (folder / _MANIFEST).is_file():
            raise FileNotFoundError(f"{folder} has no {_MANIFEST}; name a folder that `vpvae tokenize` wrote")
        self.manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        self.is_audio = "clips" in self.manifest
        files = sorted(str(file) for file in (folder / "data").glob("*.parquet"))
        if self.manifest["clips" if self.is_audio else "images"] is None or len(files) != self.manifest["files"]:
            raise ValueError(
                f"{folder} is not finished: {len(files)} of {self.manifest['files']} files are there; start the same "
                "`vpvae tokenize` again, it goes on"
            )
        rows = load_dataset("parquet", data_files=files, split="train")
        self.condition_column = condition_column
        if condition_column is not None:
            kind = rows.features.get(condition_column)
            whole = hasattr(kind, "names") or (isinstance(kind, Value) and "int" in kind.dtype)
            if not whole:
                raise ValueError(
                    f"{folder} has no column {condition_column!r} of whole numbers; columns: "
                    f"{', '.join(rows.column_names)}"
                )
        read = ["codes", *(["num_samples"] if self.is_audio else []), *([condition_column] if condition_column else [])]
        self.rows = rows.select_columns(read).with_format("numpy")

    @property
    def grid(self) -> tuple[int, ...]:
        """[h, w] of the images; [n] of the longest clip."""
        if not self.is_audio:
            return tuple(self.rows[0]["codes"].shape[:2])
        samples = max(self.rows["num_samples"][:])
        return (math.ceil(int(samples) / self.manifest["hop_length"]),)

    @property
    def condition_size(self) -> int:
        """One more than the highest condition; 0 without a column."""
        if self.condition_column is None:
            return 0
        kind = self.rows.features[self.condition_column]
        if hasattr(kind, "names"):
            return len(kind.names)
        values = np.asarray(self.rows[self.condition_column][:], dtype=float)
        if not values.min() >= 0:  # NaN where a value is missing
            found = "missing values" if np.isnan(values).any() else values.min()
            raise ValueError(f"column {self.condition_column!r} must hold whole numbers from 0 on, got {found}")
        return int(values.max()) + 1

    def codes(self, example: Mapping[str, Any]) -> Tensor:
        """[h, w] or [n] of a row, with several codes a token [..., G]."""
        codes = torch.from_numpy(np.asarray(example["codes"]).astype(np.int64))
        return codes.transpose(0, 1) if self.is_audio and codes.ndim == 2 else codes

    def check_same_codes(self, other: "CodeFolder") -> None:
        """Raise a ValueError where another folder's codes are of another tokenizer, grid, or range of conditions."""
        for name in ("code_fingerprint", "codebook_size", "code_groups"):
            if self.manifest[name] != other.manifest[name]:
                raise ValueError(
                    f"the two folders hold codes of different tokenizers: {self.manifest['tokenizer']} and "
                    f"{other.manifest['tokenizer']} ({name} differs); tokenize both with the same one"
                )
        if not self.is_audio and self.grid != other.grid:
            raise ValueError(
                f"the two folders hold codes of different sizes, {list(self.grid)} and {list(other.grid)} an image; "
                "tokenize both with the same --size"
            )
        if other.condition_size > self.condition_size:
            raise ValueError(
                f"column {self.condition_column!r} goes to {other.condition_size - 1} in the second folder, only to "
                f"{self.condition_size - 1} in the first, which is trained on"
            )


class CodeSequences(Dataset):
    """Ids of codes; clips longer than the grid are cut into windows, one after the other.

    An item has "ids" [at most L], "condition" (an int, -1 without), and of clips whether the window "begins" and "ends"
    one.
    """

    def __init__(self, folder: CodeFolder, vocabulary: CodeVocabulary):
        self._folder, self._vocabulary = folder, vocabulary
        if folder.is_audio:
            samples = np.asarray(folder.rows["num_samples"][:])
            lengths = np.ceil(samples / folder.manifest["hop_length"]).astype(int)
            window = vocabulary.grid[0]
            self._windows = [(row, start) for row, length in enumerate(lengths) for start in range(0, length, window)]
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

    Of each sequence a share is masked that is drawn anew, uniformly on [0, 1], by the scheduler that later generates.
    All draws are from torch's global generator.
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
