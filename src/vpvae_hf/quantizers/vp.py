"""VP: train with a perturbation, fit the codebook afterwards. Shapes: |S| latents in the queue."""

import dataclasses
import math
import zlib
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vpvae_hf import distributed
from vpvae_hf.neighbors import BACKENDS, NeighborIndex, build_index
from vpvae_hf.settings import (
    is_integer,
    is_number,
    require,
    require_integer,
    require_name,
    require_share,
    require_weight,
)
from vpvae_hf.tensors import is_tracing, kept_for_training, precise_dtype, without_bad_values

from .base import CodebookNotFittedError, HoldsValues, QuantizerConfig, QuantizerOutput
from .codebook import CodebookQuantizer, CodebookQuantizerConfig
from .normalization import normalization_loss
from .vp_moves import metropolis, random_codebook
from .vp_queue import LatentQueue
from .vp_scale import PerturbationScale

# Enough for a root mean square displacement within about 3%; later steps refine it.
_TRIAL_LATENTS = 1024

# With many ranks the search index may lag behind the queue by this share of it, unless settings allow more.
_STALEST_INDEX = 0.5

_RUN_BY_ALL = (
    "every rank must run each training forward of VectorPerturbation, whose queue they share. For a forward of this "
    "rank alone call eval() on the model first; otherwise another rank is busy, or has stopped"
)

_SMALL = {"codebook_size": 64, "latent_dim": 3, "queue_share": 0.5}

PERTURBATIONS = ("metropolis", "always_accept", "random_codebook")


@dataclass(frozen=True, kw_only=True)
class VectorPerturbationConfig(CodebookQuantizerConfig):
    """Settings of `VectorPerturbation`.

    Attributes:
        codebook_size: K, for which the perturbation is scaled and which `fit_codebook` fits by default.
        latent_dim: d, 1 to 16.
        perturbation: "metropolis" (the paper's), "always_accept" (its ablation without Metropolis-Hastings), or
            "random_codebook" (a move towards the nearest of K recent latents, drawn anew each step).
        eta: scale of the radius of "metropolis" and "always_accept", eq. (3); "auto" keeps the displacement as
            large as the quantization error.
        share: share of the way that "random_codebook" moves, in (0, 1], or "auto", likewise.
        codebook_size_range: least and greatest K of "random_codebook", which then draws K anew each step, with a
            uniform logarithm, so that one model serves codebooks of all sizes in between. The share is measured at
            codebook_size all the same. None for codebook_size alone.
        density_rank: k of the density estimate, eq. (4).
        queue_per_code: latents in the queue for each code and dimension: |S| = queue_per_code * K * d.
        queue_share: random share of each batch's latents that enter the queue, once it holds two latents per code;
            until then all of them do.
        index_refresh: share of the queue that may change before its search index is rebuilt; for several ranks, which
            fill the queue together, so many times it, up to half of the queue.
        search_backend: how "metropolis" and "always_accept" search, as for `vpvae_hf.neighbors.build_index`.
        mean_weight, variance_weight: l1 and l2 of the normalization loss, eq. (11); both 0 switch it off.
        normalization: "each" draws the variance of each dimension to 1, eq. (11); "whole" only their mean, so that
            dimensions that carry more information may take more room than others.
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
    perturbation: Literal["metropolis", "always_accept", "random_codebook"] = "metropolis"
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
        valid = is_integer(self.latent_dim) and 1 <= self.latent_dim <= 16
        require(valid, "latent_dim", self.latent_dim, "an integer in 1..16")
        super().__post_init__()
        for name in ("density_rank", "queue_per_code"):
            require_integer(name, getattr(self, name), 1)
        if self.codebook_size_range is not None:
            self._check_range()
        if self.queue_size < max(2 * self.largest_codebook, self.density_rank):
            raise ValueError(
                f"a queue of queue_per_code * K * latent_dim = {self.queue_size} latents is too short; it "
                f"must hold 2 per code and density_rank={self.density_rank}: raise queue_per_code"
            )
        require_name("perturbation", self.perturbation, PERTURBATIONS)
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
        """The greatest K that it is trained for."""
        return max(self.codebook_size, *(self.codebook_size_range or (0,)))

    @property
    def queue_size(self) -> int:
        """|S|, the capacity of the queue."""
        return self.queue_per_code * self.largest_codebook * self.latent_dim

    def without_fit(self) -> "VectorPerturbationConfig":
        return dataclasses.replace(self, fitted=False, metric="euclidean")

    def _check_range(self) -> None:
        limits = tuple(self.codebook_size_range)
        valid = len(limits) == 2 and all(map(is_integer, limits)) and 2 <= limits[0] <= limits[1]
        require(valid, "codebook_size_range", self.codebook_size_range, "two integers of at least 2, the lesser first")
        object.__setattr__(self, "codebook_size_range", limits)
        if self.perturbation != "random_codebook":
            raise ValueError(
                f'codebook_size_range is for perturbation "random_codebook", got {self.perturbation!r}: its search '
                "costs less for small K, whereas the others would look for farther and farther neighbours"
            )


class VectorPerturbation(CodebookQuantizer):
    """Trains on displaced latents, without codes; encodes with a codebook fitted after training.

    In the first steps, until the queue holds two latents per code, latents pass through unperturbed.

    In a distributed job every rank must run each training forward, since the ranks share one queue of latents of them
    all. The queue is the same to the bit on each, and so are eta (or share) and the measured error; other metrics are
    each rank's own. Ranks may have different numbers of tokens. In eval mode a rank may run alone.

    Buffers:
        codebook: [K, d] float32, zeros until fitted.
    """

    config: VectorPerturbationConfig

    def __init__(self, config: VectorPerturbationConfig):
        super().__init__(config)
        self.register_buffer("codebook", torch.zeros(config.codebook_size, config.latent_dim, dtype=torch.float32))
        self.queue = LatentQueue(config.queue_size, config.latent_dim)
        self.scale = _scale(config)
        self._index: NeighborIndex | None = None
        self._indexed_at = 0
        self._step_size_ratio = 1.0
        self._most_tokens = 0  # of a rank in a step so far
        self._is_codebook = HoldsValues()
        _stay_out_of_graphs()

    @property
    def training_state(self) -> "_TrainingState":
        return _TrainingState(self)

    def recent_latents(self) -> Tensor:
        return self.queue.latents()

    @property
    def _least_queue(self) -> int:
        """How many latents the queue must hold before distances mean something."""
        return max(2 * self.config.largest_codebook, self.config.density_rank)

    def training_forward(self, features: Tensor, generator: torch.Generator | None) -> QuantizerOutput:
        config, flat = self.config, features.reshape(-1, self.latent_dim)
        displacement, metrics = self._displacement(flat.detach(), generator)
        latents = features + displacement.view_as(features)  # eq. (9): the displacement carries no gradient
        whole = config.normalization == "whole"
        loss = normalization_loss(flat, config.mean_weight, config.variance_weight, whole=whole)
        return QuantizerOutput(latents=latents, codes=None, loss=loss, metrics=metrics)

    def _displacement(self, latents: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Displacements [N, d] of latents, which then enter the queue, and the metrics. No graph looks into it."""
        device = latents.device
        self.scale.move(device)
        finite = without_bad_values(latents)  # searches take no others
        with distributed.run_by_all_ranks(_RUN_BY_ALL):
            perturbed, accepted = self._perturb(finite, generator)
            displacement = perturbed - finite
            displacement_ms = displacement.square().sum(dim=-1).mean()
            self._share(latents, displacement_ms, generator)
        error_ms = self.scale.error_ms
        scale_name = "share" if self.config.perturbation == "random_codebook" else "eta"
        known = {
            "quantizer/quantization_error_rms": math.nan if error_ms is None else error_ms**0.5,
            "quantizer/queue_fill": len(self.queue) / self.queue.capacity,
        }
        return displacement, {
            "quantizer/displacement_rms": displacement_ms.sqrt(),
            "quantizer/acceptance": accepted.float().mean(),
            f"quantizer/{scale_name}": self.scale.value.to(torch.float32, copy=True),
            **{name: torch.full((), value, device=device, dtype=torch.float32) for name, value in known.items()},
        }

    def check_codes(self) -> None:
        if not self.config.fitted and not is_tracing() and self._is_codebook(self.codebook):
            raise CodebookNotFittedError(
                "the codebook holds values, as of weights that were copied one by one, but the settings say that it is "
                "not fitted; call model.set_codebook(model.quantize.codebook), or load weights with load_state_dict"
            )
        super().check_codes()

    def _install(self, codebook: Tensor) -> None:
        self.set_codebook_size(len(codebook))
        self.codebook = codebook
        self.config = dataclasses.replace(self.config, fitted=True)

    @property
    def fitted_tensors(self) -> tuple[Tensor, ...]:
        roots = () if self.metric_root is None else (self.metric_root,)
        return (self.codebook, *roots) if self.config.fitted else ()

    @kept_for_training()
    def drop_fit(self) -> None:
        self.codebook, self.metric_root = torch.zeros_like(self.codebook), None
        super().drop_fit()

    def set_codebook_size(self, codebook_size: int) -> None:
        """Train for another K >= 2 from now on: M, the queue's capacity and the scale follow; no codebook is fitted."""
        self.reconfigure(dataclasses.replace(self.config, codebook_size=codebook_size))

    @kept_for_training()
    def reconfigure(self, config: QuantizerConfig) -> bool:
        """Train with other settings of the kind and the same latent_dim from now on.

        The queue keeps the newest latents that it can hold, a fitted codebook stays if K stays, and the scale is
        measured anew. Settings equal to the present ones, `fitted` aside, change nothing.
        """
        present = self.config
        if not isinstance(config, VectorPerturbationConfig) or config.latent_dim != present.latent_dim:
            return False
        stays = present.fitted and config.codebook_size == present.codebook_size
        config = dataclasses.replace(config, fitted=stays, metric=present.metric if stays else "euclidean")
        if config == present:
            return True
        self.config = config
        if config.codebook_size != present.codebook_size:
            self.codebook, self.metric_root = self.codebook.new_zeros(config.codebook_size, self.latent_dim), None
        self.queue.resize(config.queue_size)
        if _scale_settings(config) == _scale_settings(present):
            self.scale.forget()
        else:
            self.scale = _scale(config)
        self._index = None
        return True

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors):
        """Take over a codebook of any K; it is fitted unless it holds only zeros."""
        loaded = state_dict.get(f"{prefix}codebook")
        if loaded is not None and loaded.ndim == 2 and loaded.shape[1] == self.latent_dim:
            try:
                if not torch.isfinite(loaded).all():
                    raise ValueError("it holds NaN or infinite values")
                self.set_codebook_size(len(loaded))
            except ValueError as error:
                errors.append(f"the codebook {prefix}codebook {tuple(loaded.shape)} cannot be used: {error}")
                return
            if self.codebook.is_inference():  # made within inference_mode, after which it could not be written to
                self.codebook = torch.empty_like(self.codebook)
            self.config = dataclasses.replace(self.config, fitted=bool(loaded.any()))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors)

    def _perturb(self, latents: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Perturbed latents [N, d] and which proposals were accepted [N]."""
        config, held = self.config, len(self.queue)
        if held < self._least_queue:
            return latents, torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
        if self.scale.due(self.queue.pushed, held):
            trial = partial(self._trial_displacement_ms, latents)
            # A checkpoint is read into main memory, where K-means would take minutes and draw other numbers.
            queue = self.queue.latents().to(latents.device)
            self.scale.measure(queue, config.codebook_size, self.queue.pushed, trial)
        if config.perturbation != "random_codebook":
            return self._metropolis(latents, self.scale.value, generator)
        size = config.codebook_size
        if config.codebook_size_range is not None:
            least, most = map(math.log, config.codebook_size_range)
            part = torch.rand((), device="cpu", dtype=torch.float32, generator=_on_cpu(generator))
            size = round(math.exp(least + float(part) * (most - least)))
            # Errors of codebooks follow K^(-2/d); so the displacement is compared at the size that was measured.
            self._step_size_ratio = (size / config.codebook_size) ** (2 / self.latent_dim)
        codebook = self.queue.draw(size, latents.device, generator)
        perturbed = random_codebook(latents, codebook, self.scale.value)
        return perturbed, torch.ones(len(latents), dtype=torch.bool, device=latents.device)

    def _metropolis(
        self, latents: Tensor, eta: float | Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        index = self._current_index(latents.device)
        return metropolis(
            latents,
            index,
            density_rank=self.config.density_rank,
            mass_rank=math.ceil(index.size / self.codebook_size),
            eta=eta,
            always_accept=self.config.perturbation == "always_accept",
            generator=generator,
        )

    def _trial_displacement_ms(self, latents: Tensor, eta: float) -> float:
        """Mean square displacement at some eta, with the same random numbers for each, of some of the latents."""
        generator = torch.Generator(latents.device).manual_seed(self.queue.pushed)
        trial = latents[torch.randperm(len(latents), device=latents.device, generator=generator)[:_TRIAL_LATENTS]]
        perturbed, _ = self._metropolis(trial, eta, generator)
        return float((perturbed - trial).square().sum(dim=-1).mean())

    @kept_for_training()
    def _current_index(self, device: torch.device) -> NeighborIndex:
        changed, refresh = self.queue.pushed - self._indexed_at, self.config.index_refresh
        most = min(refresh * distributed.world_size(), max(refresh, _STALEST_INDEX)) * len(self.queue)
        if self._index is not None and (self._index.device != device or changed > most):
            self._index = None  # so that two are never held
        if self._index is None:
            self._index = build_index(self.queue.unordered().to(device), self.config.search_backend)
            self._indexed_at = self.queue.pushed
        return self._index

    def _share(self, latents: Tensor, displacement_ms: Tensor, generator: torch.Generator | None) -> None:
        """Have the queue and the scale of every rank see what this rank's latents [N, d] and their displacement are."""
        tokens = len(latents)
        chosen = torch.randperm(tokens, device=latents.device, generator=generator)[: self._entering(tokens)]
        displaced = displacement_ms.to(precise_dtype(latents.device)) * self._step_size_ratio * tokens
        rows, displaced, tokens = self._of_all_ranks(latents[chosen], displaced, tokens)
        self.scale.observe(displaced / tokens)
        self.queue.push(rows)

    def _entering(self, tokens: int) -> int:
        """How many of a rank's tokens enter the queue in this step."""
        filling = len(self.queue) < self._least_queue
        return tokens if filling else math.ceil(self.config.queue_share * tokens)

    def _of_all_ranks(self, rows: Tensor, displaced: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor | int]:
        """The rows [n, d] of all ranks, one after the other, and the sums over them of the two numbers.

        It is one collective, of a few kilobytes once the queue is filled, in which ranks wait for the slowest; and one
        more if a rank has more tokens than any had before.
        """
        if distributed.world_size() == 1:
            return rows, displaced, tokens
        numbers = torch.stack([displaced, torch.full_like(displaced, tokens)])
        while True:
            parts, sums = distributed.gather_rows(rows, self._entering(self._most_tokens), numbers)
            counts = [int(count) for count in sums[:, 1].tolist()]
            if max(counts) <= self._most_tokens:
                break
            self._most_tokens = max(counts)
        rows = torch.cat([part[: self._entering(count)] for part, count in zip(parts, counts, strict=True)])
        return rows, *sums.sum(dim=0)


@cache
def _stay_out_of_graphs() -> None:
    # What a step does with queue, index and scale is Python between kernels. A decorator would import torch's compiler
    # along with this module, which takes two seconds.
    VectorPerturbation._displacement = torch.compiler.disable(VectorPerturbation._displacement)


def _on_cpu(generator: torch.Generator | None) -> torch.Generator | None:
    """A generator whose numbers the host knows without waiting for a device: of the CPU, seeded by another's state."""
    if generator is None or generator.device.type == "cpu":
        return generator
    return torch.Generator("cpu").manual_seed(zlib.crc32(generator.get_state().numpy().tobytes()))


def _scale_settings(config: VectorPerturbationConfig) -> tuple:
    return config.perturbation == "random_codebook", config.eta, config.share


def _scale(config: VectorPerturbationConfig) -> PerturbationScale:
    if config.perturbation == "random_codebook":
        return PerturbationScale(config.share, start=0.88, bounds=(0.01, 1.0))
    return PerturbationScale(config.eta, start=1.0)


class _TrainingState:
    def __init__(self, quantizer: VectorPerturbation):
        self._quantizer = quantizer

    def state_dict(self) -> dict:
        # The saving run builds its search index anew, as the resuming run must, so that both continue alike.
        self._quantizer._index = None
        return {
            "codebook_size": self._quantizer.codebook_size,
            "queue": self._quantizer.queue.state_dict(),
            "scale": self._quantizer.scale.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self._quantizer.set_codebook_size(state["codebook_size"])
        self._quantizer._index = None
        self._quantizer.queue.load_state_dict(state["queue"])
        self._quantizer.scale.load_state_dict(state["scale"])
