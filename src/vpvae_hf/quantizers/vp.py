"""VP: train with a perturbation, fit the codebook afterwards. Shapes: |S| latents in the queue."""

import dataclasses
import math
import zlib
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from vpvae_hf import distributed
from vpvae_hf.neighbors import NeighborIndex, build_index
from vpvae_hf.tensors import is_tracing, kept_for_training, precise_dtype, without_bad_values

from .base import CodebookNotFittedError, QuantizerConfig, QuantizerOutput
from .codebook import CodebookQuantizer
from .commitment import Commitment
from .normalization import normalization_loss
from .vp_config import VectorPerturbationConfig
from .vp_live_codebook import LiveCodebook
from .vp_moves import metropolis, random_codebook
from .vp_queue import LatentQueue
from .vp_scale import PerturbationScale

# Enough latents to measure the root mean square displacement within about 3%; later steps refine it.
_TRIAL_LATENTS = 1024

# With many ranks the search index may lag behind the queue by this share of the queue, unless settings allow more.
_STALEST_INDEX = 0.5

_RUN_BY_ALL = (
    "every rank must run each training forward of VectorPerturbation, since all ranks share its queue. For a forward "
    "on this rank alone, call eval() on the model first; if all ranks do run it, another rank is busy, or has stopped"
)


class VectorPerturbation(Commitment, CodebookQuantizer):
    """Trains on displaced latents, without codes; encodes with a codebook that is fitted after training.

    In the first steps, until the queue holds two latents per code, latents pass through unperturbed. From then on, a
    live codebook follows the latents of the queue. It estimates the quantization error, and the displacement is made as
    large as this error. Late in the run, once the encoder has learned, the commitment loss draws latents to the live
    codebook's codes, so that they cluster and quantization costs less.

    In a distributed job every rank must run each training forward, since all ranks share one queue of latents. The
    queue, the live codebook, eta (or the share) and the measured error are the same to the bit on each rank; other
    metrics are each rank's own. Ranks may have different numbers of tokens. In eval mode a rank may run alone.

    Buffers:
        codebook: [K, d] float32, zeros until fitted.
    """

    config: VectorPerturbationConfig

    def __init__(self, config: VectorPerturbationConfig):
        super().__init__(config)
        self.register_buffer("codebook", torch.zeros(config.codebook_size, config.latent_dim, dtype=torch.float32))
        self.queue = LatentQueue(config.queue_size, config.latent_dim)
        self.live = LiveCodebook(config.codebook_size)
        self.scale = _scale(config)
        self._index: NeighborIndex | None = None
        self._indexed_at = 0
        self._step_size_ratio = 1.0
        self._most_tokens = 0  # of a rank in a step so far
        _stay_out_of_graphs()

    @property
    def training_state(self) -> "_TrainingState":
        return _TrainingState(self)

    def live_codebook(self) -> Tensor | None:
        return self.live.codebook

    @property
    def _least_queue(self) -> int:
        """How many latents the queue must hold before distances mean something."""
        return max(2 * self.config.largest_codebook, self.config.density_rank)

    def training_forward(self, features: Tensor, generator: torch.Generator | None) -> QuantizerOutput:
        config, flat = self.config, features.reshape(-1, self.latent_dim)
        moves, committed, metrics = self._step(flat.detach(), generator)
        latents = features + moves.displacement.view_as(features)  # eq. (9): the displacement carries no gradient
        whole = config.normalization == "whole"
        normalization = normalization_loss(flat, config.mean_weight, config.variance_weight, whole=whole)
        loss = self._loss(normalization, committed, flat, moves.codes)
        return QuantizerOutput(latents=latents, codes=None, loss=loss, metrics=metrics)

    def _step(self, latents: Tensor, generator: torch.Generator | None) -> tuple["_Moves", Tensor, dict[str, Tensor]]:
        """How latents [N, d] move, the share [] of the commitment loss, and the metrics. No graph traces this method.

        The latents then enter the queue.
        """
        device = latents.device
        self.scale.move(device)
        finite = without_bad_values(latents)  # searches accept only finite values
        with distributed.run_by_all_ranks(_RUN_BY_ALL):
            moves = self._moves(finite, generator)
            self._share(latents, moves, generator)
        scale_name = "share" if self.config.perturbation == "random_codebook" else "eta"
        committed = 0.0 if self.live.codebook is None else self._committed()
        known = {"committed": committed, "queue_fill": len(self.queue) / self.queue.capacity}
        known = {name: torch.full((), value, device=device, dtype=torch.float32) for name, value in known.items()}
        return (
            moves,
            known["committed"],
            {
                "quantizer/displacement_rms": moves.displacement_ms.sqrt(),
                "quantizer/acceptance": moves.accepted.float().mean(),
                f"quantizer/{scale_name}": self.scale.value.to(torch.float32, copy=True),
                "quantizer/quantization_error_rms": self.live.error_ms.sqrt().to(torch.float32),
                **{f"quantizer/{name}": value for name, value in known.items()},
            },
        )

    def check_codes(self) -> None:
        if not self.config.fitted and not is_tracing() and self._holds_fit(self.codebook):
            raise CodebookNotFittedError(
                "the codebook holds values, e.g. weights that were copied one by one, but the settings say that it is "
                "not fitted; call model.set_codebook(model.quantize.codebook), or load weights with load_state_dict"
            )
        super().check_codes()

    def _install(self, codebook: Tensor) -> None:
        self.set_codebook_size(len(codebook))
        self.codebook = codebook
        self.config = dataclasses.replace(self.config, fitted=True)

    @property
    def fitted_tensors(self) -> tuple[Tensor, ...]:
        return (self.codebook, *self._fitted_beside) if self.config.fitted else ()

    @kept_for_training()
    def drop_fit(self) -> None:
        self.codebook = torch.zeros_like(self.codebook)
        super().drop_fit()

    def set_codebook_size(self, codebook_size: int) -> None:
        """Train for another K >= 2 from now on: the rank M, the queue's capacity and the scale change with it.

        This fits no codebook."""
        if codebook_size != self.codebook_size:
            self.reconfigure(dataclasses.replace(self.config.without_fit(), codebook_size=codebook_size))

    @kept_for_training()
    def reconfigure(self, config: QuantizerConfig) -> bool:
        """Train from now on with other settings of this kind that have the same latent_dim.

        The queue keeps the newest latents that it can hold, fitted codebooks stay if K stays, and the scale is measured
        anew. Settings that differ in `fitted` alone change nothing.
        """
        present = self.config
        if not isinstance(config, VectorPerturbationConfig) or config.latent_dim != present.latent_dim:
            return False
        stays = present.fitted and config.codebook_size == present.codebook_size
        fitted = ("fitted", "metric", "other_codebook_sizes", "nested")
        fit = {name: getattr(present, name) for name in fitted} if stays else {}
        config = dataclasses.replace(config.without_fit(), **fit)
        if config == present:
            return True
        if not stays:
            self.metric_root = None
            self._make_others(())
        self.config = config
        if config.codebook_size != present.codebook_size:
            self.codebook = self.codebook.new_zeros(config.codebook_size, self.latent_dim)
            self.live = LiveCodebook(config.codebook_size)
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
            if self.codebook.is_inference():  # made in inference_mode, so it could not be written to later
                self.codebook = torch.empty_like(self.codebook)
            self.config = dataclasses.replace(self.config, fitted=bool(loaded.any()))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors)

    def _moves(self, latents: Tensor, generator: torch.Generator | None) -> "_Moves":
        config, queue = self.config, self.queue
        if len(queue) < self._least_queue:
            accepted = torch.zeros_like(latents[:, 0], dtype=torch.bool)
            return _Moves.to(latents, latents, accepted, codes=latents, error_ms=latents.new_full((), math.nan))
        self.live.update(queue, latents.device)
        codes = self.live.nearest(latents)
        error_ms = (codes - latents).square().sum(dim=-1).mean()
        if config.perturbation == "random_codebook":
            drawn_codebook = queue.draw(self._drawn_size(generator), latents.device, generator)
            perturbed, drawn = random_codebook(latents, drawn_codebook, self.scale.value)
            accepted = torch.ones_like(latents[:, 0], dtype=torch.bool)
            codes = codes if config.codebook_size_range is None else drawn
        else:
            if self.scale.due(queue.pushed, len(queue)):
                self.scale.find(error_ms, queue.pushed, partial(self._trial_displacement_ms, latents))
            perturbed, accepted = self._metropolis(latents, self.scale.value, generator)
        return _Moves.to(perturbed, latents, accepted, codes=codes, error_ms=error_ms)

    def _drawn_size(self, generator: torch.Generator | None) -> int:
        """How many codes the random codebook of a step has."""
        size = self.config.codebook_size
        if self.config.codebook_size_range is not None:
            least, most = map(math.log, self.config.codebook_size_range)
            part = torch.rand((), device="cpu", dtype=torch.float32, generator=_on_cpu(generator))
            size = round(math.exp(least + float(part) * (most - least)))
            # A codebook's error is proportional to K^(-2/d), so the displacement is converted to that of
            # `codebook_size`, for which the error is measured.
            self._step_size_ratio = (size / self.config.codebook_size) ** (2 / self.latent_dim)
        return size

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
        """Mean square displacement of some latents at some eta, with the same random numbers for every eta."""
        generator = torch.Generator(latents.device).manual_seed(self.queue.pushed)
        trial = latents[torch.randperm(len(latents), device=latents.device, generator=generator)[:_TRIAL_LATENTS]]
        perturbed, _ = self._metropolis(trial, eta, generator)
        return float((perturbed - trial).square().sum(dim=-1).mean())

    @kept_for_training()
    def _current_index(self, device: torch.device) -> NeighborIndex:
        changed, refresh = self.queue.pushed - self._indexed_at, self.config.index_refresh
        most = min(refresh * distributed.world_size(), max(refresh, _STALEST_INDEX)) * len(self.queue)
        if self._index is not None and (self._index.device != device or changed > most):
            self._index = None  # so that two indexes are never held
        if self._index is None:
            self._index = build_index(self.queue.unordered().to(device), self.config.search_backend)
            self._indexed_at = self.queue.pushed
        return self._index

    def _share(self, latents: Tensor, moves: "_Moves", generator: torch.Generator | None) -> None:
        """Add this rank's latents [N, d], displacement and error to the queue, scale and live codebook of all ranks."""
        tokens = len(latents)
        chosen = torch.randperm(tokens, device=latents.device, generator=generator)[: self._entering(tokens)]
        of_step = torch.stack([moves.displacement_ms * self._step_size_ratio, moves.error_ms])
        rows, sums, tokens = self._of_all_ranks(
            latents[chosen], of_step.to(precise_dtype(of_step.device)) * tokens, tokens
        )
        displacement_ms, error_ms = (sums / tokens).unbind()
        self.live.observe(error_ms)
        self.scale.observe(displacement_ms, self.live.error_ms)
        self.queue.push(rows)

    def _entering(self, tokens: int) -> int:
        """How many of a rank's tokens enter the queue in this step."""
        filling = len(self.queue) < self._least_queue
        return tokens if filling else math.ceil(self.config.queue_share * tokens)

    def _of_all_ranks(self, rows: Tensor, sums: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor | int]:
        """The rows [n, d] of all ranks, one after the other, and the sums [2] and token counts, added over ranks.

        This takes one collective operation (of a few kilobytes once the queue is filled), in which ranks wait for the
        slowest, and a second one if a rank has more tokens than any rank had before.
        """
        if distributed.world_size() == 1:
            return rows, sums, tokens
        numbers = torch.cat([sums, torch.full_like(sums[:1], tokens)])
        while True:
            parts, received = distributed.gather_rows(rows, self._entering(self._most_tokens), numbers)
            counts = [int(count) for count in received[:, 2].tolist()]
            if max(counts) <= self._most_tokens:
                break
            self._most_tokens = max(counts)
        rows = torch.cat([part[: self._entering(count)] for part, count in zip(parts, counts, strict=True)])
        totals = received.sum(dim=0)
        return rows, totals[:2], totals[2]


@dataclass(frozen=True, kw_only=True)
class _Moves:
    """How a step moves latents [N, d].

    Attributes:
        displacement: [N, d].
        displacement_ms: [] its mean square length.
        accepted: [N] bool, which proposals were accepted.
        codes: [N, d] vectors of the codes that the commitment loss draws latents to.
        error_ms: [] mean square distance to the live codebook; NaN before there is one.
    """

    displacement: Tensor
    displacement_ms: Tensor
    accepted: Tensor
    codes: Tensor
    error_ms: Tensor

    @classmethod
    def to(cls, perturbed: Tensor, latents: Tensor, accepted: Tensor, **others: Tensor) -> "_Moves":
        """The moves from latents to perturbed latents, each [N, d]."""
        displacement = perturbed - latents
        displacement_ms = displacement.square().sum(dim=-1).mean()
        return cls(displacement=displacement, displacement_ms=displacement_ms, accepted=accepted, **others)


@cache
def _stay_out_of_graphs() -> None:
    # A step handles queue, index and scale in Python between kernels, so no graph should hold it. A decorator would
    # import torch's compiler along with this module, which takes two seconds.
    VectorPerturbation._step = torch.compiler.disable(VectorPerturbation._step)


def _on_cpu(generator: torch.Generator | None) -> torch.Generator | None:
    """A generator on the CPU, seeded by another's state, so that its numbers are known without waiting for a device."""
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
            "live": self._quantizer.live.state_dict(),
            "scale": self._quantizer.scale.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        if "live" not in state:
            raise ValueError(
                "the checkpoint was made before VP had a live codebook, so training would continue differently; "
                "finish the run with the version that started it, or start a new run"
            )
        self._quantizer.set_codebook_size(state["codebook_size"])
        self._quantizer._index = None
        self._quantizer.queue.load_state_dict(state["queue"])
        self._quantizer.live.load_state_dict(state["live"])
        self._quantizer.scale.load_state_dict(state["scale"])
