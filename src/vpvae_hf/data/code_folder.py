"""Files of codes, as `CodeFiles` wrote them.

Shapes: [h, w] codes of an image, [n] of a clip, G codes a token.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vpvae_hf.files import read_json

from .code_manifest import MANIFEST


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
        if not (folder / MANIFEST).is_file():
            raise FileNotFoundError(f"{folder} has no {MANIFEST}; name a folder that `vpvae tokenize` wrote")
        self.manifest: dict[str, Any] = read_json(folder / MANIFEST)
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
        return (max(self.lengths),)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each clip."""
        samples = np.asarray(self.rows["num_samples"][:])
        return np.ceil(samples / self.manifest["hop_length"]).astype(int).tolist()

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
        for name in ("fingerprint", "codebook_size", "code_groups"):
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
