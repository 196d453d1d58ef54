"""Codes as ids of a transformer, and back.

Shapes: B sequences; *grid the codes of an image [h, w], or of a clip [n]; G codes per token; K codes in all; C ids of
conditions, P of which go before a sequence; L = h * w * G or n * G ids of codes.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vpvae_hf.models.tokenizer import Tokenizer, require_shape
from vpvae_hf.renamed import FormerMethod
from vpvae_hf.settings import require, require_name
from vpvae_hf.tensors import as_codes, as_real, as_tensor

# The field of a model's config that holds the vocabulary that the model was made for.
_FIELD = "code_vocabulary"


@dataclass(frozen=True, kw_only=True)
class CodeVocabulary:
    """The meaning of each id of a transformer over codes.

    Ids are, in this order: C conditions (classes, or all ids of a text tokenizer), K codes, and the special ids below.
    An autoregressive sequence is [condition...] begin codes [end]; a masked one is a condition, then codes. Without a
    condition, the id "unconditional" takes the place of each id of the condition.

    Attributes:
        codebook_size: K.
        grid: [h, w] of the images, or [n] of the longest clip; so it decides whether the model makes images or audio.
        code_groups: G; the codes of a token follow each other.
        condition_size: C; 0 if nothing conditions the codes.
        condition_length: P, the number of ids of a condition: 1 for classes; texts are padded or cut to it.
        condition_names: the names of the classes 0..C-1; None if they have none.
        fingerprint: `fingerprint()` of the tokenizer that made the codes; None accepts any tokenizer.

    Raises:
        ValueError: a size is below 1 (C: below 0), the grid is neither [h, w] nor [n], or there are not C names. The
            methods raise it for codes, ids or conditions that are out of range, have another shape or unknown names,
            or are not allowed.
    """

    codebook_size: int
    grid: tuple[int, ...]
    code_groups: int = 1
    condition_size: int = 0
    condition_length: int = 1
    condition_names: tuple[str, ...] | None = None
    fingerprint: dict[str, str] | None = None

    def __post_init__(self):
        object.__setattr__(self, "grid", tuple(self.grid))
        least = {"codebook_size": 1, "code_groups": 1, "condition_size": 0, "condition_length": 1}
        for name, value in least.items():
            require(getattr(self, name) >= value, name, getattr(self, name), f"at least {value}")
        if (names := self.condition_names) is not None:
            object.__setattr__(self, "condition_names", tuple(names))
            size = self.condition_size
            require(len(names) == size, "condition_names", names, f"{size} names, as many as condition_size")
        valid = len(self.grid) in (1, 2) and min(self.grid) >= 1
        require(valid, "grid", list(self.grid), "[h, w] of images or [n] of clips, each at least 1")

    first_code = property(lambda self: self.condition_size)  # the id of code 0
    begin = property(lambda self: self.first_code + self.codebook_size)  # before the first code
    end = property(lambda self: self.begin + 1)  # after the last code
    # In place of a missing condition, and in place of "begin" before codes from the middle of a clip.
    unconditional = property(lambda self: self.begin + 2)
    pad = property(lambda self: self.begin + 3)  # fills up shorter sequences
    mask = property(lambda self: self.begin + 4)  # a code that is not known yet
    size = property(lambda self: self.begin + 5)  # the number of ids
    length = property(lambda self: math.prod(self.grid) * self.code_groups)  # L of an image, or of the longest clip
    positions = property(lambda self: self.length + self.condition_length + 2)  # with condition, "begin" and "end"
    is_audio = property(lambda self: len(self.grid) == 1)  # sequences [n], as of clips, which may differ in length
    _group_shape = property(lambda self: () if self.code_groups == 1 else (self.code_groups,))

    def is_code(self, ids: Tensor) -> Tensor:
        """Which ids are those of codes, as booleans of the same shape."""
        ids = as_tensor(ids, "ids").long()
        return (ids >= self.first_code) & (ids < self.begin)

    def encode(self, codes: Tensor) -> Tensor:
        """Ids [B, L] of codes in raster order; a shorter clip has fewer.

        Args:
            codes: [B, *grid], or [B, *grid, G] with several codes per token; clips may be shorter than the grid.
        """
        codes = as_codes(codes)
        groups, given = self._group_shape, codes.shape[1:]
        sizes = given[: len(self.grid)]
        fits = tuple(given[len(self.grid) :]) == groups and len(sizes) == len(self.grid)
        if not fits or not (1 <= sizes[0] <= self.grid[0] if self.is_audio else tuple(sizes) == self.grid):
            wanted = [f"1..{self.grid[0]}"] if self.is_audio else map(str, self.grid)
            raise ValueError(
                f"codes must be [{', '.join(['B', *wanted, *map(str, groups)])}] for this vocabulary, got "
                f"{list(codes.shape)}; the model was trained on that grid, encode images or clips of its size"
            )
        return self._ids(codes)

    def encode_prefix(self, codes: Tensor) -> Tensor:
        """Ids of the first m codes in raster order, [B, m] or [B, m, G]."""
        codes, groups, most = as_codes(codes), self._group_shape, math.prod(self.grid)
        if codes.ndim != 2 + len(groups) or tuple(codes.shape[2:]) != groups or codes.shape[1] > most:
            wanted = ", ".join(["B", f"0..{most}", *map(str, groups)])
            raise ValueError(f"the first codes must be [{wanted}], got {list(codes.shape)}")
        return self._ids(codes)

    def _ids(self, codes: Tensor) -> Tensor:
        codes = codes.cpu()
        _check_range("codes", codes, self.codebook_size, "; were they made with another tokenizer?")
        return codes.flatten(1) + self.first_code

    def decode(self, ids: Tensor) -> Tensor:
        """Codes [B, *grid] or [B, *grid, G] int64 of ids [B, L]; fewer ids make shorter clips."""
        ids = as_tensor(ids, "ids").long()
        require_shape(ids, "ids", ("B", "L"))
        if not self.is_code(ids).all():
            valid = f"{self.first_code}..{self.begin - 1}"
            raise ValueError(f"ids of codes lie in {valid}, got {int(ids.min())}..{int(ids.max())}")
        if not self.is_audio and ids.shape[1] != self.length:
            raise ValueError(f"an image has {self.length} ids of codes, got {ids.shape[1]}")
        if ids.shape[1] % self.code_groups:
            raise ValueError(f"a token has {self.code_groups} ids, so their number {ids.shape[1]} must be a multiple")
        codes = ids - self.first_code
        return codes.reshape(len(ids), *((-1,) if self.is_audio else self.grid), *self._group_shape)

    def prompt(self, conditions: Tensor | None = None, *, batch_size: int = 1) -> Tensor:
        """Ids [B, P + 1] that stand before the codes of an autoregressive sequence; [B, 1] if C = 0.

        Args:
            conditions: [B], one per sequence, such as classes, or [B, P] ids of texts; None for none.
            batch_size: B if there are no conditions.
        """
        conditions = None if conditions is None else checked_conditions(conditions)
        begin = torch.full((batch_size if conditions is None else len(conditions), 1), self.begin)
        if self.condition_size == 0 and conditions is None:
            return begin
        return torch.cat([self.condition_ids(conditions, batch_size=batch_size), begin], dim=1)

    def condition_ids(self, conditions: Tensor | None = None, *, batch_size: int = 1) -> Tensor:
        """Ids [B, P] of conditions, "unconditional" for None; arguments are those of `prompt`."""
        if conditions is None:
            return torch.full((batch_size, self.condition_length), self.unconditional)
        if self.condition_size == 0:
            raise ValueError("the model was trained without conditions, so it takes none; leave them out")
        conditions = checked_conditions(conditions).long().cpu()
        _check_range("conditions", conditions, self.condition_size)
        ids = conditions[:, None] if conditions.ndim == 1 else conditions
        if self.condition_length > 1 and ids.shape[1] != self.condition_length:
            raise ValueError(
                f"conditions must be [B, {self.condition_length}], got {list(conditions.shape)}; give texts, or their "
                "ids padded to as many as the model was trained with"
            )
        return ids

    def class_ids(self, labels: Sequence[int | str]) -> list[int]:
        """Ids [B] of classes, each given by its id or its name."""
        if self.condition_names is None:
            some = next(each for each in labels if isinstance(each, str))
            known = f"0..{self.condition_size - 1}" if self.condition_size else "none"
            raise ValueError(f"the model knows no names of classes, got {some!r}; ids that it knows: {known}")
        names = {name: number for number, name in enumerate(self.condition_names)}
        for label in labels:
            if isinstance(label, str):
                require_name("class", label, names)
        return [names[each] if isinstance(each, str) else each for each in labels]

    @classmethod
    def from_model(cls, model: PreTrainedModel) -> "CodeVocabulary":
        """The vocabulary in a model's config; a ValueError if there is none."""
        fields: dict[str, Any] | None = getattr(model.config, _FIELD, None)
        if fields is None:
            raise ValueError(
                f"the config of the {type(model).__name__} names no code vocabulary; write it with "
                "CodeVocabulary(codebook_size=..., grid=...).write_to(model)"
            )
        return cls(**fields)

    attach = FormerMethod("write_to")
    codes_of = FormerMethod("decode")
    ids_of = FormerMethod("encode")
    of = FormerMethod("from_model")

    def write_to(self, model: PreTrainedModel) -> None:
        """Write the vocabulary into a model's config, to be saved with it; errors are those of `check_model`."""
        self.check_model(model)
        setattr(model.config, _FIELD, _as_json(dataclasses.asdict(self)))
        # A causal model has settings of its own for generate(), made when the model was made.
        for settings in (model.config, getattr(model, "generation_config", None)):
            if settings is not None:
                settings.bos_token_id, settings.eos_token_id = self.begin, self.end
                settings.pad_token_id = self.pad

    def check_model(self, model: PreTrainedModel) -> None:
        """Raise a ValueError if a model has fewer ids, or fewer positions, than the codes need."""
        rows = model.get_input_embeddings().num_embeddings
        if rows < self.size:
            raise ValueError(
                f"the {type(model).__name__} has a vocabulary of {rows} ids, and {self.condition_size} conditions, "
                f"{self.codebook_size} codes and 5 special ids need {self.size}; make it with vocab_size={self.size}, "
                f"or call resize_token_embeddings({self.size})"
            )
        positions, needed = getattr(model.config, "max_position_embeddings", None), self.positions
        if positions is not None and positions < needed:
            raise ValueError(
                f"the {type(model).__name__} has {positions} positions, and {self.length} codes with condition, begin "
                f"and end need {needed}; make it with max_position_embeddings={needed} or more"
            )

    def check_start(self, model: PreTrainedModel) -> None:
        """Raise a ValueError if a model to start from was trained on other codes, or with other ids."""
        if getattr(model.config, _FIELD, None) is None:
            return
        present = CodeVocabulary.from_model(model)
        same = ["condition_size", "condition_length", "codebook_size", "code_groups", "fingerprint"]
        if present.condition_names is not None:  # models of an older version have none
            same.append("condition_names")
        for name in same:
            if getattr(present, name) != getattr(self, name):
                raise ValueError(
                    f"the {type(model).__name__} was trained on other codes: its {name} is {getattr(present, name)}, "
                    f"here it is {getattr(self, name)}; train on the same codes, or start with a new model"
                )

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise a NoCodesError for a tokenizer without codes, and a ValueError if its codes are not the model's."""
        tokenizer.quantize.check_codes()
        self.check_selected(tokenizer)
        if self.fingerprint is not None:
            tokenizer.check_fingerprint(self.fingerprint, "the model was trained")

    def check_selected(self, tokenizer: Tokenizer) -> None:
        """Raise a ValueError unless the tokenizer has as many codes as the model: the quick part of the check."""
        remedy = "load the tokenizer that made the model's codes"
        if self.codebook_size in tokenizer.codebook_sizes:
            remedy = f"call tokenizer.select_codebook({self.codebook_size}), or {remedy}"
        for name in ("codebook_size", "code_groups"):
            if getattr(tokenizer.quantize, name) != getattr(self, name):
                raise ValueError(
                    f"the model was trained on codes with {name}={getattr(self, name)}, the tokenizer has "
                    f"{getattr(tokenizer.quantize, name)}; {remedy}"
                )


def _as_json(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def checked_conditions(conditions: Any) -> Tensor:
    """Conditions as a tensor; a ValueError if they are neither [B] nor [B, n]."""
    conditions = as_real(conditions, "conditions")
    if conditions.ndim not in (1, 2):
        shape = tuple(conditions.shape)
        raise ValueError(
            f"conditions (class_labels) must be [B] or [B, n], got shape {shape}; give a list with one for each item"
        )
    return conditions


def _check_range(name: str, ids: Tensor, size: int, remedy: str = "") -> None:
    if ids.numel() and (ids.min() < 0 or ids.max() >= size):
        raise ValueError(f"{name} must lie in 0..{size - 1}, got {int(ids.min())}..{int(ids.max())}{remedy}")
