"""What quantizers with a codebook share: the search for the nearest code, in a metric, and the lookup."""

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor, nn

from vpvae_hf.codebook import require_nested_sizes
from vpvae_hf.neighbors import NearestPoint, nearest_in_graph, nearest_point
from vpvae_hf.settings import Metric, is_integer, require, require_name
from vpvae_hf.tensors import as_real, is_tracing, kept_for_training

from .base import Quantizer, QuantizerConfig


def require_metric(metric: str) -> None:
    """Raise a ValueError unless it is the name of a metric."""
    require_name("metric", metric, get_args(Metric))


@dataclass(frozen=True, kw_only=True)
class CodebookQuantizerConfig(QuantizerConfig):
    """Settings that quantizers with a codebook share.

    Attributes:
        metric: the distance that decides which code is nearest: "euclidean", or "decoder", which weights a displacement
            by how much it changes the decoder's output. `set_codebook` and `fit_codebook` set it.
        other_codebook_sizes: K of each codebook that is kept in addition to the one that decides the codes, in rising
            order. `set_codebooks` and `fit_codebook` set it.
        nested: whether the codes of a larger codebook divide the cells of a smaller one: code c of K codes lies in
            the cell of code c // (K / K') of K' codes. `set_codebooks` and `fit_codebook` set it.
    """

    fits: ClassVar[str | None] = "codebook"
    metric: Metric = "euclidean"
    other_codebook_sizes: tuple[int, ...] = ()
    nested: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_metric(self.metric)
        given = self.other_codebook_sizes
        valid = isinstance(given, Sequence) and all(is_integer(size) and size >= 2 for size in given)
        valid = valid and sorted({*given} - {self.codebook_size}) == list(given)
        require(
            valid, "other_codebook_sizes", given, "integers of at least 2 in rising order, codebook_size not among them"
        )
        object.__setattr__(self, "other_codebook_sizes", tuple(given))
        if self.nested:
            require_nested_sizes((self.codebook_size, *given))

    def without_fit(self) -> "CodebookQuantizerConfig":
        return dataclasses.replace(self, metric="euclidean", other_codebook_sizes=(), nested=False)


class CodebookQuantizer(Quantizer):
    """A quantizer with a codebook: a latent's code is the number of the nearest vector, in the metric of the fit.

    Codebooks of other sizes may be kept in addition; `select_codebook` chooses one of them. Subclasses have a
    `codebook`, [K, d], and implement `_install`.

    Buffers:
        metric_root: [d, d] float32, the symmetric matrix whose square is the metric; None if the metric is Euclidean.
        other_codebooks.K: [K, d] float32 for each K of the config's `other_codebook_sizes`.
    """

    config: CodebookQuantizerConfig
    codebook: Tensor
    metric_root: Tensor | None

    def __init__(self, config: CodebookQuantizerConfig):
        super().__init__(config)
        self.register_buffer("metric_root", None)
        if config.metric == "decoder":
            self._make_root()
        self._make_others(config.other_codebook_sizes)
        self._search: NearestPoint | None = None

    @property
    def metric(self) -> Tensor | None:
        """M [d, d]: the code of a latent z is the c with the least (z - c)^T M (z - c). None: Euclidean."""
        return None if self.metric_root is None else self.metric_root @ self.metric_root

    def nearest_codes(self, latents: Tensor) -> Tensor:
        flat = self._in_metric(latents.detach().reshape(-1, self.latent_dim))
        codebook = self._in_metric(self.codebook.detach())
        if is_tracing():
            codes = nearest_in_graph(flat, codebook)
        elif flat.device.type == codebook.device.type == "cpu":
            # Compared by content: other code may write into the codebook, and comparing costs far less than a search.
            if self._search is None or not torch.equal(self._search.points, codebook):
                self._search = NearestPoint(codebook)
            _, codes = self._search(flat)
        else:
            _, codes = nearest_point(flat, codebook)
        return codes.view(latents.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        return self.codebook[codes]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        present = (self.codebook_size,) if self.config.fitted else ()
        return tuple(sorted((*present, *self.config.other_codebook_sizes)))

    def set_codebook(self, codebook: Tensor, metric: Tensor | None = None) -> None:
        """Replace all codebooks by a fitted codebook [K, d]; K may differ from the present size."""
        self.set_codebooks([codebook], metric)

    @kept_for_training()
    def set_codebooks(self, codebooks: Sequence[Tensor], metric: Tensor | None = None, *, nested: bool = False) -> None:
        """Replace all codebooks by fitted codebooks [K, d] of different K. The first is selected.

        Args:
            metric: M [d, d], symmetric and positive definite; None for the Euclidean one.
            nested: whether the codes of a larger one divide the cells of a smaller one.
        """
        if not codebooks:
            raise ValueError("codebooks must hold at least one codebook, got none")
        first, *others = (self._checked(codebook) for codebook in codebooks)
        sizes = [len(codebook) for codebook in (first, *others)]
        if len({*sizes}) < len(sizes):
            raise ValueError(f"codebooks must differ in size, got {', '.join(map(str, sizes))} codes; leave one out")
        if nested:
            require_nested_sizes(sizes)
        root = None if metric is None else square_root(metric, self.latent_dim).to(first)
        self._install_all(first, others, root, nested)

    @kept_for_training()
    def select_codebook(self, codebook_size: int) -> None:
        super().select_codebook(codebook_size)
        if codebook_size == self.codebook_size:
            return
        others = [self._other(size) for size in self.config.other_codebook_sizes if size != codebook_size]
        others.append(self.codebook.detach().clone())
        self._install_all(self._other(codebook_size), others, self.metric_root, self.config.nested)

    def _install_all(self, selected: Tensor, others: Sequence[Tensor], root: Tensor | None, nested: bool) -> None:
        former = self.config
        self.config = dataclasses.replace(self.config, nested=False)  # so that sizes are checked once all are set
        try:
            self._install(selected)
        except ValueError:
            self.config = former
            raise
        self._set_root(root)
        self._set_others(others)
        self.config = dataclasses.replace(self.config, nested=nested)

    def _checked(self, codebook: Tensor) -> Tensor:
        codebook = as_real(codebook, "codebook")
        if codebook.ndim != 2 or codebook.shape[1] != self.latent_dim:
            raise ValueError(f"codebook must be [K, {self.latent_dim}], got shape {tuple(codebook.shape)}")
        if not torch.isfinite(codebook).all():
            raise ValueError("codebook holds NaN or infinite values")
        return codebook.detach().to(self.codebook.device, torch.float32, copy=True)

    @abstractmethod
    def _install(self, codebook: Tensor) -> None:
        """Make a checked codebook [K, d] the one that decides the codes, and record it in the config.

        Codebooks that were fitted together with the former one may stay. If it raises an error, nothing has changed.
        """

    @property
    def code_state(self) -> dict[str, Tensor]:
        return {name: each for name, each in self.state_dict().items() if not name.startswith("other_codebooks.")}

    @property
    def _fitted_beside(self) -> tuple[Tensor, ...]:
        """What was fitted in addition to the codebook that decides the codes."""
        others = (self._other(size) for size in self.config.other_codebook_sizes)
        return (*(() if self.metric_root is None else (self.metric_root,)), *others)

    def coarser_codes(self, codes: Tensor, codebook_size: int) -> Tensor:
        """Turn codes of the selected codebook into codes of a smaller one, if the codebooks are nested."""
        sizes = self.codebook_sizes if self.config.nested else ()
        smaller = [size for size in sizes if size <= self.codebook_size]
        if codebook_size not in smaller:
            there = ", ".join(map(str, smaller)) or "none; fit several with fit_codebook(..., nested=True)"
            raise ValueError(f"there is no nested codebook of {codebook_size} codes below these; there are: {there}")
        return self._checked_codes(codes) // (self.codebook_size // codebook_size)

    def drop_fit(self) -> None:
        self.metric_root = None
        self._make_others(())
        super().drop_fit()

    def _other(self, size: int) -> Tensor:
        return self.other_codebooks.get_buffer(str(size))

    def _set_others(self, codebooks: Sequence[Tensor]) -> None:
        self.other_codebooks = nn.Module()
        for codebook in sorted(codebooks, key=len):
            self.other_codebooks.register_buffer(str(len(codebook)), codebook)
        sizes = tuple(sorted(map(len, codebooks)))
        nested = self.config.nested and sizes == self.config.other_codebook_sizes
        self.config = dataclasses.replace(self.config, other_codebook_sizes=sizes, nested=nested)

    @kept_for_training()
    def _make_others(self, sizes: Sequence[int], device: torch.device | None = None) -> None:
        like = {"dtype": torch.float32, "device": device}
        self._set_others([torch.zeros(size, self.latent_dim, **like) for size in sizes])

    def _set_root(self, root: Tensor | None) -> None:
        self.metric_root = root
        self.config = dataclasses.replace(self.config, metric="euclidean" if root is None else "decoder")

    def _in_metric(self, vectors: Tensor) -> Tensor:
        return vectors if self.metric_root is None else transformed(vectors, self.metric_root)

    @kept_for_training()
    def _make_root(self, device: torch.device | None = None) -> None:
        self._set_root(torch.zeros(self.latent_dim, self.latent_dim, dtype=torch.float32, device=device))

    def _load_from_state_dict(self, state_dict, prefix, *others):
        """Take over the metric and other codebooks, unless the state dict holds no quantizer, e.g. adapters only."""
        own = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
        if "metric_root" in own:
            self._make_root(self.codebook.device)
        elif own:
            self._set_root(None)
        if own:
            sizes = (key.removeprefix("other_codebooks.") for key in own if key.startswith("other_codebooks."))
            self._make_others([int(size) for size in sizes if size.isdecimal()], self.codebook.device)
        super()._load_from_state_dict(state_dict, prefix, *others)


def square_root(metric: Tensor, latent_dim: int) -> Tensor:
    """The symmetric matrix [d, d], float64 on the CPU, whose square is a metric; a ValueError if there is none."""
    metric = as_real(metric, "metric").detach().to("cpu", torch.float64)
    if metric.shape != (latent_dim, latent_dim):
        raise ValueError(f"metric must be [{latent_dim}, {latent_dim}], got shape {tuple(metric.shape)}")
    if not torch.isfinite(metric).all() or not torch.allclose(metric, metric.mT, atol=1e-5 * float(metric.abs().max())):
        raise ValueError("metric must be symmetric and finite")
    values, vectors = torch.linalg.eigh((metric + metric.mT) / 2)
    if values[0] <= 0:
        raise ValueError(f"metric must be positive definite, its least eigenvalue is {float(values[0]):.4g}")
    return (vectors * values.sqrt()) @ vectors.mT


def transformed(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Vectors [N, d] times a matrix [d, d]. A vector is rounded in the same way in every batch and on every device."""
    # A matrix product adds up in an order that depends on the sizes, and on CUDA perhaps in TF32.
    parts = [value.unsqueeze(-1) * row for value, row in zip(vectors.unbind(dim=-1), matrix, strict=True)]
    return sum(parts[1:], start=parts[0])
