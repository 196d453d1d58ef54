"""Settings of VP."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from vpvae_hf.neighbors import BACKENDS
from vpvae_hf.settings import (
    Perturbation,
    is_integer,
    is_number,
    require,
    require_integer,
    require_name,
    require_share,
    require_weight,
)

from .codebook import CodebookQuantizerConfig
from .commitment import CommitmentConfig

_SMALL = {"codebook_size": 64, "latent_dim": 3, "queue_share": 0.5}
MOST_DIMENSIONS = 16  # that latents may have


@dataclass(frozen=True, kw_only=True)
class VectorPerturbationConfig(CommitmentConfig, CodebookQuantizerConfig):
    """Settings of `VectorPerturbation`, and those of `CommitmentConfig`.

    The commitment loss draws a latent to the nearest code of the live codebook or, with codebook_size_range, of the
    random codebook.

    Attributes:
        codebook_size: K; the perturbation is scaled for this size, and `fit_codebook` fits it by default.
        latent_dim: d, 1 to 16.
        perturbation: "random_codebook" (a move towards the nearest of K recent latents, drawn anew each step),
            "metropolis" (the paper's), or "always_accept" (its ablation without Metropolis-Hastings).
        eta: scale of the radius of "metropolis" and "always_accept", eq. (3); "auto" keeps the displacement as
            large as the quantization error.
        share: share of the way that "random_codebook" moves a latent, in (0, 1]; "auto" keeps the displacement as
            large as the quantization error.
        codebook_size_range: smallest and largest K of "random_codebook", which then draws K anew in each step, with a
            uniform logarithm, so that one model serves codebooks of all sizes between. The range should reach up to
            four times the largest size that will be fitted. The share is still measured at codebook_size. None: K is
            always codebook_size.
        density_rank: k of the density estimate, eq. (4).
        queue_per_code: latents in the queue for each code and dimension: |S| = queue_per_code * K * d, with the
            largest K of codebook_size_range.
        queue_share: random share of each batch's latents that enter the queue, once it holds two latents per code;
            until then all of them do.
        index_refresh: share of the queue that may change before its search index is rebuilt. In a distributed job it is
            multiplied by the number of ranks, which fill the queue together, up to half of the queue.
        search_backend: how "metropolis" and "always_accept" search, as for `vpvae_hf.neighbors.build_index`.
        mean_weight, variance_weight: l1 and l2 of the normalization loss, eq. (11); both 0 switch it off.
        normalization: "each" draws the variance of each dimension to 1, eq. (11); "whole" draws only their mean to 1,
            so that dimensions that carry more information may have more variance.
    """

    kind: ClassVar[str] = "vp"
    description: ClassVar[str] = "VP-VAE: trained by displacing latents, the codebook fitted to them afterwards"
    paper: ClassVar[str | None] = "2602.17133"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        _SMALL,
        _SMALL | {"perturbation": "always_accept", "metric": "decoder"},
        _SMALL | {"perturbation": "random_codebook"},
        _SMALL | {"perturbation": "random_codebook", "codebook_size_range": [32, 128]},
    )
    needs_fitting: ClassVar[bool] = True
    perturbation: Perturbation = "random_codebook"
    eta: float | Literal["auto"] = "auto"
    share: float | Literal["auto"] = "auto"
    codebook_size_range: tuple[int, int] | None = None
    density_rank: int = 8
    queue_per_code: int = 16
    queue_share: float = 0.01
    index_refresh: float = 0.02
    search_backend: str = "auto"
    mean_weight: float = 0.1
    variance_weight: float = 0.07
    normalization: Literal["each", "whole"] = "each"
    fitted: bool = False

    def __post_init__(self):
        valid = is_integer(self.latent_dim) and 1 <= self.latent_dim <= MOST_DIMENSIONS
        require(valid, "latent_dim", self.latent_dim, f"an integer in 1..{MOST_DIMENSIONS}")
        super().__post_init__()
        for name in ("density_rank", "queue_per_code"):
            require_integer(name, getattr(self, name), 1)
        if self.codebook_size_range is not None:
            self._check_range()
        if self.queue_size < max(2 * self.largest_codebook, self.density_rank):
            raise ValueError(
                f"a queue of queue_per_code * K * latent_dim = {self.queue_size} latents is too short; it "
                f"must hold 2 per code, and at least density_rank={self.density_rank}: raise queue_per_code"
            )
        require_name("perturbation", self.perturbation, get_args(Perturbation))
        valid = self.eta == "auto" or (is_number(self.eta) and self.eta > 0)
        require(valid, "eta", self.eta, 'a positive number or "auto"')
        valid = self.share == "auto" or (is_number(self.share) and 0 < self.share <= 1)
        require(valid, "share", self.share, 'a number in (0, 1] or "auto"')
        valid = is_number(self.queue_share) and 0 < self.queue_share <= 1
        require(valid, "queue_share", self.queue_share, "a number in (0, 1]")
        require_share("index_refresh", self.index_refresh)
        backends = ("auto", *BACKENDS)
        require_name("search_backend", self.search_backend, backends)
        for name in ("mean_weight", "variance_weight"):
            require_weight(name, getattr(self, name))
        require_name("normalization", self.normalization, ("each", "whole"))

    @property
    def largest_codebook(self) -> int:
        """The greatest K that training serves."""
        return max(self.codebook_size, *(self.codebook_size_range or (0,)))

    @property
    def queue_size(self) -> int:
        """|S|, the capacity of the queue."""
        return self.queue_per_code * self.largest_codebook * self.latent_dim

    def without_fit(self) -> "VectorPerturbationConfig":
        return dataclasses.replace(super().without_fit(), fitted=False)

    def _check_range(self) -> None:
        limits = tuple(self.codebook_size_range)
        valid = len(limits) == 2 and all(map(is_integer, limits)) and 2 <= limits[0] <= limits[1]
        require(valid, "codebook_size_range", self.codebook_size_range, "two integers of at least 2, the lesser first")
        object.__setattr__(self, "codebook_size_range", limits)
        if self.perturbation != "random_codebook":
            raise ValueError(
                f'codebook_size_range is for perturbation "random_codebook" only, got {self.perturbation!r}: the '
                "others would search for farther neighbours the smaller K is, at a higher cost; leave the range out"
            )
