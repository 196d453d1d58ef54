"""Reads the codes that `vpvae tokenize` wrote, and their conditions, such as classes or captions."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vpvae_hf.files import read_json

from .codes import MANIFEST


class CodeFolder:
    """The codes that `vpvae tokenize` wrote.

    Args:
        folder: a folder with tokenizer.json and data/*.parquet.
        condition_column: the column that conditions the codes: whole numbers, such as classes, or texts, such as
            captions; None for none.

    Attributes:
        manifest: content of tokenizer.json.
        rows: the data set, on disk.
        is_audio: whether the codes are sequences [n], as those of clips are, which may differ in length.
        is_text: whether the condition is a text.
    """

    def __init__(self, folder: str | Path, condition_column: str | None = None):
        from datasets import Value, load_dataset

        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise FileNotFoundError(f"{folder} has no {MANIFEST}; name a folder that `vpvae tokenize` wrote")
        self.manifest: dict[str, Any] = read_json(folder / MANIFEST)
        items = self.manifest["items"]
        files = sorted(str(file) for file in (folder / "data").glob("*.parquet"))
        if self.manifest[items] is None or len(files) != self.manifest["files"]:
            raise ValueError(
                f"{folder} is not finished: {len(files)} of {self.manifest['files']} files are there; start the same "
                "`vpvae tokenize` again to continue it"
            )
        rows = load_dataset("parquet", data_files=files, split="train")
        self.condition_column, self.is_text = condition_column, False
        if condition_column is not None:
            kind = rows.features.get(condition_column)
            dtype = kind.dtype if isinstance(kind, Value) else ""
            self.is_text = "string" in dtype
            if not (self.is_text or hasattr(kind, "names") or "int" in dtype):
                there = ", ".join(rows.column_names)
                raise ValueError(
                    f"{folder} has no column {condition_column!r} of whole numbers or texts; columns: {there}"
                )
        # Columns of grids have a shape.
        self.is_audio = not hasattr(rows.features["codes"], "shape")
        read = ["codes", *([condition_column] if condition_column else [])]
        self.rows = rows.select_columns(read).with_format("numpy")

    @property
    def grid(self) -> tuple[int, ...]:
        """The grid of codes: [h, w] of the images, or [n] of the longest clip."""
        return (max(self.lengths),) if self.is_audio else tuple(self.rows[0]["codes"].shape[:2])

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each clip."""
        import pyarrow.compute as pc

        codes, groups = self.rows.with_format("arrow")[:]["codes"], self.manifest["code_groups"]
        if groups > 1:  # a list for each group
            codes = pc.list_flatten(codes)
        return pc.list_value_length(codes).to_pylist()[::groups]

    @property
    def condition_size(self) -> int:
        """One more than the highest condition; 0 without a column, and for texts, where the text tokenizer decides."""
        if self.condition_column is None or self.is_text:
            return 0
        if self.condition_names is not None:
            return len(self.condition_names)
        values = np.asarray(self.rows[self.condition_column][:], dtype=float)
        if not values.min() >= 0:  # NaN where a value is missing
            found = "missing values" if np.isnan(values).any() else values.min()
            raise ValueError(f"column {self.condition_column!r} must hold whole numbers from 0 on, got {found}")
        return int(values.max()) + 1

    @property
    def condition_names(self) -> tuple[str, ...] | None:
        """The names of the classes if the column is a `datasets.ClassLabel`; None for another column or none."""
        names = getattr(self.rows.features.get(self.condition_column), "names", None)
        return None if names is None else tuple(names)

    def condition(self, example: Mapping[str, Any]) -> int | str | None:
        """A row's whole number or text; None without a column, or if the value is missing, -1 or empty."""
        value = None if self.condition_column is None else example[self.condition_column]
        if value is None or value != value:  # numpy has NaN for missing values
            return None
        if self.is_text:
            return str(value) if value.strip() else None
        return int(value) if value >= 0 else None  # in `datasets`, -1 means without a class

    def texts(self) -> list[str]:
        """All texts of the condition column that are not empty."""
        texts = self.rows.with_format("arrow")[:][self.condition_column].to_pylist()
        return [text for text in texts if text is not None and text.strip()]

    def first_conditions(self, number: int) -> list[int | str] | None:
        """The first `number` conditions of rows that have one, repeated from the beginning if there are too few."""
        conditions = (self.condition(row) for row in self.rows)
        some = list(itertools.islice((each for each in conditions if each is not None), number))
        return [some[place % len(some)] for place in range(number)] if some else None

    def codes(self, example: Mapping[str, Any]) -> Tensor:
        """A row's codes [h, w] or [n]; [..., G] if a token has several codes."""
        codes = torch.from_numpy(np.asarray(example["codes"]).astype(np.int64))
        return codes.transpose(0, 1) if self.is_audio and codes.ndim == 2 else codes

    def check_same_codes(self, other: "CodeFolder") -> None:
        """Raise a ValueError if another folder's codes differ in tokenizer, grid, or range of conditions."""
        for name in ("fingerprint", "codebook_size", "code_groups"):
            if self.manifest[name] != other.manifest[name]:
                raise ValueError(
                    f"the two folders hold codes of different tokenizers: {self.manifest['tokenizer']} and "
                    f"{other.manifest['tokenizer']} ({name} differs); tokenize both with the same one"
                )
        if not self.is_audio and self.grid != other.grid:
            raise ValueError(
                f"the two folders hold codes of different sizes, {list(self.grid)} and {list(other.grid)} per image; "
                "tokenize both with the same --size"
            )
        if other.is_text != self.is_text or other.condition_names != self.condition_names:
            raise ValueError(
                f"column {self.condition_column!r} holds other classes in the second folder than in the first, or "
                "texts in only one of them; tokenize two splits of one data set"
            )
        if other.condition_size > self.condition_size:
            raise ValueError(
                f"column {self.condition_column!r} reaches {other.condition_size - 1} in the second folder, but only "
                f"{self.condition_size - 1} in the first, which is trained on"
            )
