"""Codes as ids of a transformer, and back.

Shapes: B sequences; *grid the codes of an image [h, w], or of a clip [n]; G codes a token; K codes in all; C
conditions; L = h * w * G or n * G ids of codes.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Where a model's config holds the vocabulary that it was made for.
_FIELD = "code_vocabulary"


@dataclass(frozen=True, kw_only=True)
class CodeVocabulary:
    """What each id of a transformer over codes stands for.

    Ids are, in this order: C conditions (classes, or all ids of a text tokenizer), K codes, and the special ones below.
    An autoregressive sequence is [condition...] begin codes [end]; a masked one is condition, then codes.
    "unconditional" stands in a condition's place where there is none, and for "begin" before codes from within a clip.

    Attributes:
        codebook_size: K.
        grid: [h, w] of the images, or [n] of the longest clip.
        code_groups: G; a token's codes follow each other.
        condition_size: C; 0 where nothing conditions the codes.
        fingerprint: of the tokenizer whose codes they are, as its `fingerprint()` gives it; None for any.

    Raises:
        ValueError: a size below 1 (C: below 0), or a grid that is neither [h, w] nor [n].
    """

    codebook_size: int
    grid: tuple[int, ...]
    code_groups: int = 1
    condition_size: int = 0
    fingerprint: dict[str, str] | None = None

    def __post_init__(self):
        object.__setattr__(self, "grid", tuple(self.grid))
        for name, least in (("codebook_size", 1), ("code_groups", 1), ("condition_size", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if len(self.grid) not in (1, 2) or min(self.grid) < 1:
            raise ValueError(f"grid must be [h, w] of images or [n] of clips, each at least 1, got {list(self.grid)}")

    @property
    def first_code(self) -> int:
        """The id of code 0."""
        return self.condition_size

    @property
    def begin(self) -> int:
        """The id before the first code."""
        return self.first_code + self.codebook_size

    @property
    def end(self) -> int:
        """The id after the last code."""
        return self.begin + 1

    @property
    def unconditional(self) -> int:
        """The id in place of a condition."""
        return self.begin + 2

    @property
    def pad(self) -> int:
        """The id that fills up shorter sequences."""
        return self.begin + 3

    @property
    def mask(self) -> int:
        """The id of a code that is not known yet."""
        return self.begin + 4

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.begin + 5

    @property
    def length(self) -> int:
        """L, how many ids the codes of an image, or of the longest clip, take."""
        return math.prod(self.grid) * self.code_groups

    @property
    def _group_shape(self) -> tuple[int, ...]:
        return () if self.code_groups == 1 else (self.code_groups,)

    def ids_of(self, codes: Tensor) -> Tensor:
        """Ids [B, L] of codes in raster order; of clips as many as there are.

        Args:
            codes: [B, *grid], with several codes a token [B, *grid, G]; a clip may be shorter.

        Raises:
            TypeError: codes are not integers.
            ValueError: another grid, or codes outside 0..K-1.
        """
        groups = self._group_shape
        given = tuple(codes.shape[1 : 1 + len(self.grid)])
        fits = codes.ndim == 1 + len(self.grid) + len(groups) and tuple(codes.shape[1 + len(self.grid) :]) == groups
        fits = fits and (given == self.grid if len(self.grid) == 2 else 1 <= given[0] <= self.grid[0])
        if not fits:
            wanted = ["B", *map(str, self.grid), *map(str, groups)]
            if len(self.grid) == 1:
                wanted[1] = f"1..{wanted[1]}"
            raise ValueError(
                f"codes must be [{', '.join(wanted)}] for this vocabulary, got {list(codes.shape)}; the model was "
                "trained on that grid, encode images or clips of its size"
            )
        return self._ids(codes)

    def ids_of_some(self, codes: Tensor) -> Tensor:
        """Ids of the first codes [B, m] or [B, m, G] in raster order; errors as of `ids_of`."""
        groups = self._group_shape
        most = math.prod(self.grid)
        if codes.ndim != 2 + len(groups) or tuple(codes.shape[2:]) != groups or codes.shape[1] > most:
            wanted = ", ".join(["B", f"0..{most}", *map(str, groups)])
            raise ValueError(f"the first codes must be [{wanted}], got {list(codes.shape)}")
        return self._ids(codes)

    def _ids(self, codes: Tensor) -> Tensor:
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise TypeError(f"codes must be integers, got {codes.dtype}")
        codes = codes.long().cpu()
        if codes.numel() and (codes.min() < 0 or codes.max() >= self.codebook_size):
            raise ValueError(
                f"codes must lie in 0..{self.codebook_size - 1}, got {int(codes.min())}..{int(codes.max())}; "
                "were they made with another tokenizer?"
            )
        return codes.flatten(1) + self.first_code

    def codes_of(self, ids: Tensor) -> Tensor:
        """Codes [B, *grid] or [B, *grid, G] int64 of ids [B, L]; of clips as many as there are.

        Raises:
            ValueError: an id that is no code's, or another number of ids than a grid takes.
        """
        codes = ids.long() - self.first_code
        if codes.numel() and (codes.min() < 0 or codes.max() >= self.codebook_size):
            raise ValueError(
                f"ids of codes lie in {self.first_code}..{self.begin - 1}, got {int(ids.min())}..{int(ids.max())}"
            )
        groups = self._group_shape
        if len(self.grid) == 2 and ids.shape[1] != self.length:
            raise ValueError(f"an image has {self.length} ids of codes, got {ids.shape[1]}")
        if ids.shape[1] % self.code_groups:
            raise ValueError(f"a token has {self.code_groups} ids, so their number {ids.shape[1]} must be a multiple")
        return codes.reshape(len(ids), *(self.grid if len(self.grid) == 2 else (-1,)), *groups)

    def prompt(self, conditions: Tensor | None = None, *, batch_size: int = 1) -> Tensor:
        """Ids [B, P] that go before the codes of an autoregressive sequence.

        Args:
            conditions: [B] one a sequence, such as classes, or [B, n] such as texts of equal length; None for none.
            batch_size: B where there are no conditions.

        Raises:
            ValueError: conditions outside 0..C-1, or any where C is 0.
        """
        begin = torch.full((batch_size if conditions is None else len(conditions), 1), self.begin)
        if self.condition_size == 0 and conditions is None:
            return begin
        return torch.cat([self.condition_ids(conditions, batch_size=batch_size), begin], dim=1)

    def condition_ids(self, conditions: Tensor | None = None, *, batch_size: int = 1) -> Tensor:
        """Ids [B, n] of conditions, "unconditional" for none; arguments and errors as of `prompt`."""
        if conditions is None:
            return torch.full((batch_size, 1), self.unconditional)
        if self.condition_size == 0:
            raise ValueError("the model was trained without conditions, so it takes none; leave them out")
        conditions = torch.as_tensor(conditions).long().cpu()
        if conditions.numel() and (conditions.min() < 0 or conditions.max() >= self.condition_size):
            raise ValueError(
                f"conditions must lie in 0..{self.condition_size - 1}, got "
                f"{int(conditions.min())}..{int(conditions.max())}"
            )
        return conditions[:, None] if conditions.ndim == 1 else conditions

    def attach(self, model) -> None:
        """Write the vocabulary into the config of a transformers model, which then knows what its ids stand for.

        Raises:
            ValueError: the model has fewer ids, or fewer positions, than the codes need.
        """
        self.check_model(model)
        setattr(model.config, _FIELD, dataclasses.asdict(self) | {"grid": list(self.grid)})
        # A causal model has settings of its own for generate(), made when it was made.
        for settings in (model.config, getattr(model, "generation_config", None)):
            if settings is not None:
                settings.bos_token_id, settings.eos_token_id = self.begin, self.end
                settings.pad_token_id = self.pad

    def check_model(self, model) -> None:
        """See that a model has room for the vocabulary and its sequences.

        Raises:
            ValueError: it has fewer ids, or fewer positions, than the codes need.
        """
        rows = model.get_input_embeddings().num_embeddings
        if rows < self.size:
            raise ValueError(
                f"the {type(model).__name__} has a vocabulary of {rows} ids, and {self.condition_size} conditions, "
                f"{self.codebook_size} codes and 5 special ids need {self.size}; make it with vocab_size={self.size}, "
                f"or call resize_token_embeddings({self.size})"
            )
        # One condition, begin and end beside the codes; longer texts are the caller's to count.
        positions, needed = getattr(model.config, "max_position_embeddings", None), self.length + 3
        if positions is not None and positions < needed:
            raise ValueError(
                f"the {type(model).__name__} has {positions} positions, and {self.length} codes with what is around "
                f"them need {needed}; make it with max_position_embeddings={needed} or more"
            )

    @classmethod
    def of(cls, model) -> "CodeVocabulary":
        """The vocabulary in a model's config.

        Raises:
            ValueError: the config has none.
        """
        fields: dict[str, Any] | None = getattr(model.config, _FIELD, None)
        if fields is None:
            raise ValueError(
                f"the config of the {type(model).__name__} names no code vocabulary; write it with "
                "CodeVocabulary(codebook_size=..., grid=...).attach(model)"
            )
        return cls(**fields)

    def check_start(self, model) -> None:
        """See that a model that is gone on from, if it knows codes, knows these by the same ids.

        Raises:
            ValueError: its vocabulary is another.
        """
        if getattr(model.config, _FIELD, None) is None:
            return
        present = CodeVocabulary.of(model)
        for name in ("condition_size", "codebook_size", "code_groups", "fingerprint"):
            if getattr(present, name) != getattr(self, name):
                raise ValueError(
                    f"the {type(model).__name__} was trained on other codes: its {name} is {getattr(present, name)}, "
                    f"here it is {getattr(self, name)}; go on with the codes that it knows, or start with a new model"
                )

    def check_tokenizer(self, tokenizer) -> None:
        """See that a tokenizer's codes are those that the model knows.

        Raises:
            CodebookNotFittedError, NoCodesError: it has no codes.
            ValueError: its codes are others.
        """
        quantizer = tokenizer.quantize
        quantizer.check_codes()
        for name in ("codebook_size", "code_groups"):
            if getattr(quantizer, name) != getattr(self, name):
                raise ValueError(
                    f"the model was trained on codes with {name}={getattr(self, name)}, the tokenizer has "
                    f"{getattr(quantizer, name)}; load the tokenizer that made the model's codes"
                )
        if self.fingerprint is not None:
            tokenizer.check_fingerprint(self.fingerprint, "the model was trained")
