"""What the page's actions compute, without the page: encoding, decoding, replaced codes, and files of codes.

Shapes: *grid the positions of a signal's codes, G codes per token, K codes in the codebook.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vpvae_hf.modalities import MODALITIES
from vpvae_hf.modalities.code_files import (
    counted_parts,
    decode_code_file,
    measured,
    model_device,
    read_code_file,
    write_code_file,
)
from vpvae_hf.models.tokenizer import Tokenizer

from .charts import Chart

# Called with how much of an action is done, from 0 to 1.
Progress = Callable[[float], None]


def quiet(share: float) -> None:
    """Report no progress."""


@dataclass(frozen=True, eq=False)
class Source:
    """A visitor's picture or sound.

    Attributes:
        name: the file's name without its suffix.
        signal: the padded signal, [1, C, *positions] on the CPU.
        size: the signal's size without padding.
        told: how the file was changed before it was encoded, in words.
        latents: the signal's latents, [1, *grid, d]; None before they are needed.
    """

    name: str
    signal: Tensor
    size: Mapping[str, int]
    told: str
    latents: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Work:
    """Codes that a visitor looks at.

    Attributes:
        name: the name of the file that they came from, without its suffix.
        source: what was encoded; None if the codes were loaded.
        size: the signal's size, see `Modality.read_file`.
        codes: [*grid] or [*grid, G] on the CPU, of the codebook with `codebook_size` codes.
        first_codes: the codes before any was replaced.
        decoded: the decoded signal without padding, [1, C, *positions] on the CPU.
        told: what the page says about the codes, in words.
    """

    name: str
    source: Source | None
    size: Mapping[str, int]
    codes: Tensor
    first_codes: Tensor
    codebook_size: int
    refine_steps: int
    decoded: Tensor
    told: str

    @property
    def replaced(self) -> int:
        """How many codes differ from those that were encoded or loaded."""
        return int((self.codes != self.first_codes).sum())


@dataclass(frozen=True)
class Row:
    """A way to store the signal: bytes of its file, quality in words by metric, and the decoded signal, if shown."""

    name: str
    stored: int
    quality: Mapping[str, str]
    decoded: Any = None


class Bench(ABC):
    """A tokenizer, with everything that the page computes with it; all visitors share it.

    Args:
        name, revision: the tokenizer's name and revision, which files of codes record.
    """

    kind: ClassVar[str]

    def __init__(self, model: Tokenizer, name: str, revision: str | None = None):
        self.model, self.name, self.revision = model, name, revision
        self.modality = MODALITIES[self.kind]
        self.modality.limit_memory(model)
        # Visitors share the model, so they share its selected codebook.
        self._lock = threading.RLock()

    @property
    def has_single_codes(self) -> bool:
        """Whether a token has one code, so that codes can be shown and replaced one by one."""
        return self.model.quantize.code_groups == 1

    @abstractmethod
    def read(self, file: str, limit: int) -> Source:
        """A visitor's file, cut or scaled down to a limit.

        Raises:
            UnreadableFileError: it cannot be read, or is too short.
        """

    @abstractmethod
    def rows(self, work: Work) -> list[Row]:
        """Rows for the codes, for a lossy codec with nearly as many bytes, and for a lossless codec."""

    @abstractmethod
    def places(self, work: Work) -> Tensor:
        """A map of the codes [rows, columns]: for each cell, its code's index among the flattened codes, or -1."""

    @abstractmethod
    def sheet(self, work: Work, progress: Progress = quiet) -> Chart | None:
        """A chart of what each code alone is decoded to; None if a token has several codes."""

    @abstractmethod
    def within_limits(self, size: Mapping[str, int]) -> str | None:
        """None if a signal of that size may be decoded from a file of codes; otherwise why not."""

    def warm_up(self) -> None:
        """Import everything that the first action would otherwise wait for."""
        self.rows(self.encode(self.example(), self.model.quantize.codebook_size))

    @abstractmethod
    def example(self) -> Source:
        """A small signal."""

    def encode(self, source: Source, codebook_size: int, refine_steps: int = 0, progress: Progress = quiet) -> Work:
        """Encode a source, and decode its codes."""
        model, encodes = self.model, refine_steps > 0 or source.latents is None
        with self._lock, self._reporting(source.size, progress, encodes, refine_steps):
            model.select_codebook(codebook_size)
            signal = source.signal.to(model_device(model))
            if refine_steps:
                codes = model.tokenize(signal, refine_steps=refine_steps)
            else:
                if encodes:
                    source = replace(source, latents=model.latent_vectors(signal))
                codes = model.quantize.encode(source.latents)
            decoded = self._decoded(codes, source.size)
        codes = codes[0].cpu()
        return Work(source.name, source, source.size, codes, codes, codebook_size, refine_steps, decoded, source.told)

    def load(self, file: str, progress: Progress = quiet) -> Work:
        """Codes that this page or `vpvae encode` wrote.

        Raises:
            UnreadableFileError: it is no file of codes, or damaged.
            ValueError: its codes are of another tokenizer, or of another kind of signal, or too many.
            ImportError: they are entropy-coded, and constriction is missing.
        """
        found, name = read_code_file(file), Path(file).name
        if found.kind != self.kind:
            others = MODALITIES[found.kind].items
            raise ValueError(f"{name} holds codes of {others}, but this is a tokenizer of {self.modality.items}")
        if why := self.within_limits(found.size):
            raise ValueError(f"{name} holds codes of {found.words}: {why}")
        with self._lock, self._reporting(found.size, progress):
            decoded = decode_code_file(file, found, self.model, self.name).cpu()
        codes, told = found.codes, f"{found.words}, from the codes of {name}. There is no original to compare with."
        return Work(
            Path(file).stem, None, found.size, codes, codes, found.codebook_size, found.refine_steps, decoded, told
        )

    def save(self, work: Work, folder: str | Path) -> Path:
        """Write the file that `vpvae encode --pack` writes, and return its path."""
        path = Path(folder, f"{work.name}.safetensors")
        made_by = {"kind": self.kind, "name": self.name, "revision": self.revision}
        with self._lock:
            self.model.select_codebook(work.codebook_size)
            write_code_file(
                path, work.codes, self.model, work.size, **made_by, refine_steps=work.refine_steps, packing="bits"
            )
        return path

    def replace(self, work: Work, place: int, code: int, *, everywhere: bool = False) -> Work:
        """Replace a code by another, at one place of the flattened codes or at all places where it occurs.

        Raises:
            ValueError: the codebook has no such code.
        """
        if not 0 <= code < work.codebook_size:
            raise ValueError(f"there is no code {code}; codes lie in 0..{work.codebook_size - 1}")
        codes = work.codes.clone()
        flat = codes.view(-1)
        flat[flat == flat[place].item() if everywhere else place] = code
        return self._with_codes(work, codes)

    def restore(self, work: Work) -> Work:
        """The codes as they were before any was replaced."""
        return self._with_codes(work, work.first_codes)

    def latents(self, codes: Tensor, codebook_size: int) -> Tensor:
        """The latents [..., d] of codes, on the CPU."""
        with self._lock:
            self.model.select_codebook(codebook_size)
            return self.model.quantize.decode(codes.to(model_device(self.model))).detach().cpu()

    def stored_bytes(self, work: Work) -> int:
        """How many bytes the codes take with ceil(log2 K) bits each."""
        return -(-work.codes.numel() * (work.codebook_size - 1).bit_length() // 8)

    def quality(self, work: Work, decoded: Tensor) -> dict[str, str]:
        """The metrics, in words, of a decoded signal compared with the source; empty if their packages are missing."""
        try:
            return measured(self.modality, self.model, decoded, self.modality.cut(work.source.signal, work.size))
        except (ImportError, ValueError):  # or the signal is too small
            return {}

    def _with_codes(self, work: Work, codes: Tensor) -> Work:
        with self._lock:
            self.model.select_codebook(work.codebook_size)
            return replace(work, codes=codes, decoded=self._decoded(codes[None], work.size))

    def _decoded(self, codes: Tensor, size: Mapping[str, int]) -> Tensor:
        return self.modality.cut(self.model.detokenize(codes.to(model_device(self.model))), size).float().cpu()

    def _fills(self, codes: Tensor, grid: tuple[int, ...], batch: int, progress: Progress) -> Iterator[Tensor]:
        """Decode, in batches, a signal for each of the codes [N] of the selected codebook, made of that code alone."""
        for start in range(0, len(codes), batch):
            part = codes[start : start + batch]
            filled = part.view(-1, *[1] * len(grid)).expand(-1, *grid)
            yield self.model.detokenize(filled.to(model_device(self.model))).float().cpu()
            progress(min(1, (start + batch) / len(codes)))

    @contextmanager
    def _reporting(
        self, size: Mapping[str, int], progress: Progress, encodes: bool = False, refine_steps: int = 0
    ) -> Iterator[None]:
        """A context that calls `progress` after each decoded part and, if `encodes`, after each encoded part."""
        done = total = 0

        def count() -> None:
            nonlocal done
            done += 1
            progress(min(1, done / total))

        with torch.no_grad(), counted_parts(self.modality, self.model, size, count, refine_steps) as encoding:
            total = encoding * encodes + self.modality.parts(size, self.model)
            yield
