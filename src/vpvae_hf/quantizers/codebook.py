"""What quantizers with a codebook share: the search for the nearest code, in a metric, and the lookup."""

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from vpvae_hf.neighbors import NearestPoint, nearest_in_graph, nearest_point
from vpvae_hf.settings import Metric, require_name
from vpvae_hf.tensors import as_real, is_tracing, kept_for_training

from .base import Quantizer, QuantizerConfig


def require_metric(metric: str) -> None:
    """Raise a ValueError unless it is the name of a metric."""
    require_name("metric", metric, get_args(Metric))


@dataclass(frozen=True, kw_only=True)
class CodebookQuantizerConfig(QuantizerConfig):
    """Settings that quantizers with a codebook share.

    Attributes:
        metric: in which metric the code of a latent is the nearest: "euclidean", or "decoder", in which displacements
            that change the decoder's output more are longer. `set_codebook` and `fit_codebook` set it.
    """

    fits: ClassVar[str | None] = "codebook"
    metric: Metric = "euclidean"

    def __post_init__(self):
        super().__post_init__()
        require_metric(self.metric)


class CodebookQuantizer(Quantizer):
    """Latents get the nearest code of a codebook, in the metric that it was fitted in.

    Subclasses have a `codebook`, [K, d], and write `_install`.

    Buffers:
        metric_root: [d, d] float32, symmetric, whose square is the metric; None if that is Euclidean.
    """

    config: CodebookQuantizerConfig
    codebook: Tensor
    metric_root: Tensor | None

    def __init__(self, config: CodebookQuantizerConfig):
        super().__init__(config)
        self.register_buffer("metric_root", None)
        if config.metric == "decoder":
            self._make_root()
        self._search: NearestPoint | None = None

    @property
    def metric(self) -> Tensor | None:
        """M [d, d], in which the code of a latent z is the c of the least (z - c)^T M (z - c); None for Euclidean."""
        return None if self.metric_root is None else self.metric_root @ self.metric_root

    def nearest_codes(self, latents: Tensor) -> Tensor:
        flat = self._in_metric(latents.detach().reshape(-1, self.latent_dim))
        codebook = self._in_metric(self.codebook.detach())
        if is_tracing():
            codes = nearest_in_graph(flat, codebook)
        elif flat.device.type == codebook.device.type == "cpu":
            # By content: other code may write into the codebook, and a comparison costs far less than a search.
            if self._search is None or not torch.equal(self._search.points, codebook):
                self._search = NearestPoint(codebook)
            _, codes = self._search(flat)
        else:
            _, codes = nearest_point(flat, codebook)
        return codes.view(latents.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        return self.codebook[codes]

    @kept_for_training()
    def set_codebook(self, codebook: Tensor, metric: Tensor | None = None) -> None:
        """Install a fitted codebook [K, d]; K may differ from the present one.

        Args:
            metric: M [d, d], symmetric and positive definite; None for the Euclidean one.
        """
        codebook = as_real(codebook, "codebook")
        if codebook.ndim != 2 or codebook.shape[1] != self.latent_dim:
            raise ValueError(f"codebook must be [K, {self.latent_dim}], got shape {tuple(codebook.shape)}")
        if not torch.isfinite(codebook).all():
            raise ValueError("codebook holds NaN or infinite values")
        root = None if metric is None else square_root(metric, self.latent_dim)
        place = self.codebook.device
        self._install(codebook.detach().to(place, torch.float32, copy=True))
        self._set_root(None if root is None else root.to(place, torch.float32))

    @abstractmethod
    def _install(self, codebook: Tensor) -> None:
        """Have a codebook [K, d], which was checked, decide the codes, and note it in the config."""

    def _set_root(self, root: Tensor | None) -> None:
        self.metric_root = root
        self.config = dataclasses.replace(self.config, metric="euclidean" if root is None else "decoder")

    def _in_metric(self, vectors: Tensor) -> Tensor:
        return vectors if self.metric_root is None else transformed(vectors, self.metric_root)

    @kept_for_training()
    def _make_root(self, device: torch.device | None = None) -> None:
        self._set_root(torch.zeros(self.latent_dim, self.latent_dim, dtype=torch.float32, device=device))

    def _load_from_state_dict(self, state_dict, prefix, *others):
        """Take over whether there is a metric; a state dict without the quantizer, such as of adapters, tells none."""
        if f"{prefix}metric_root" in state_dict:
            self._make_root(self.codebook.device)
        elif any(key.startswith(prefix) for key in state_dict):
            self._set_root(None)
        super()._load_from_state_dict(state_dict, prefix, *others)


def square_root(metric: Tensor, latent_dim: int) -> Tensor:
    """[d, d] float64 on the CPU, symmetric, whose square is a metric; a ValueError if none is."""
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
    """Vectors [N, d] times a matrix [d, d], each rounded alike in every batch and at every precision of products."""
    # A product of matrices is computed in other orders for other sizes, and on CUDA perhaps in TF32.
    parts = [value.unsqueeze(-1) * row for value, row in zip(vectors.unbind(dim=-1), matrix, strict=True)]
    return sum(parts[1:], start=parts[0])
