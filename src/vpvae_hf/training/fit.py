"""Fitting the codebook after training, eq. (12): N latents, K codes, d dimensions."""

import logging
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vpvae_hf import distributed
from vpvae_hf.codebook import fit_kmeans
from vpvae_hf.metrics import code_usage
from vpvae_hf.models.inputs import batch_inputs, check_batches, unwrapped
from vpvae_hf.models.tokenizer import Tokenizer
from vpvae_hf.neighbors import nearest_point
from vpvae_hf.progress import progress_bar
from vpvae_hf.settings import require_integer

_log = logging.getLogger(__name__)

# One latent in ten is left out of the fit, to measure the codebook on.
_HELD_OUT_SHARE = 0.1
# From this many passes over the data on, in which the same items occur with other crops, the fit says so.
_FEW_PASSES = 2


@dataclass(frozen=True)
class CodebookFit:
    """How well a codebook of K codes fits, by so many iterations of K-means.

    Attributes:
        fitted_latents, held_out_latents: how many latents the codebook was fitted to, and measured on.
        distortion: mean squared Euclidean distance of a fitted latent to its code.
        held_out_distortion: the same on latents that the fit did not see.
        held_out_usage: codebook usage (CVU) on those, exp(entropy of code use) / K.
    """

    codebook_size: int
    fitted_latents: int
    held_out_latents: int
    distortion: float
    held_out_distortion: float
    held_out_usage: float
    iterations: int

    def __str__(self) -> str:
        held_out = f"{self.held_out_distortion:.4f} on {self.held_out_latents} others, CVU {self.held_out_usage:.3f}"
        return (
            f"{self.codebook_size} codes fitted to {self.fitted_latents} latents: mean squared error "
            f"{self.distortion:.4f}, {held_out if self.held_out_latents else 'not measured on others'}"
        )


def fit_codebook(
    model: Tokenizer,
    batches: Iterable,
    codebook_size: int | None = None,
    *,
    latents_per_code: int = 256,
    seed: int = 0,
    across_ranks: bool | None = None,
    progress: bool = True,
) -> CodebookFit:
    """Encode a fresh pass over data, cluster the latents, and install the codebook in the model and its config.

    The config's `scaling_factor` becomes one over the latents' standard deviation.

    Batches are read until there are `latents_per_code` latents per code, and a ninth more to measure on, or until they
    end; so they should be shuffled. The same data and seed give the same codebook. The function may be called again,
    also with another codebook size; later training is then perturbed for that size.

    While VP trains it keeps a live codebook of its queue of recent latents, which tells the quantization error and
    serves at validations; the one that is fitted here, after training, to fresh latents, is saved.

    Args:
        model: a tokenizer, also in a wrapper of DistributedDataParallel, torch.compile or peft; it keeps its mode and
            device.
        batches: each holds inputs as the model takes them; or is a mapping that holds them as "pixel_values" or
            "input_values", and the "padding_mask" of padded audio; or a tuple or list of inputs and labels.
        codebook_size: K; by default that of the quantizer's config.
        latents_per_code: how many latents to fit to. With fewer than 256 codes overfit, and a warning says so.
        seed: seed of K-means.
        across_ranks: in a distributed job, True fits to the latents of all ranks together. Every rank must make this
            call, each with its own model of equal weights and its own part of the data; all end with the same codebook.
            False fits on this rank alone, and leaves the models of the others as they are. None, the default, is True
            if all ranks make the call within a minute, and otherwise False with a warning.
        progress: show bars on stderr.

    Raises:
        TypeError: no tokenizer, or no iterable of batches.
        ValueError: a quantizer that needs no fitting; fewer (distinct) latents than codes; NaN or infinite latents.
        RuntimeError: another rank fits, or has fitted, its own model alone, by default.
    """
    model = unwrapped(model)
    quantizer = model.quantize
    if not quantizer.needs_fitting:
        raise ValueError(
            f"the {quantizer.config.kind!r} quantizer needs no fitting; the model can be saved and used as it is"
        )
    codebook_size = quantizer.codebook_size if codebook_size is None else codebook_size
    require_integer("codebook_size", codebook_size, 2)
    require_integer("latents_per_code", latents_per_code, 1)
    codebook_size = int(codebook_size)  # numpy's do not fit into a config
    across_ranks = _across_ranks(across_ranks, "fit_codebook")
    ranks = distributed.world_size() if across_ranks else 1
    wanted = math.ceil(codebook_size * latents_per_code / ranks)
    wanted += round(wanted * _HELD_OUT_SHARE / (1 - _HELD_OUT_SHARE))
    latents = _collect(model, batches, wanted, across_ranks, progress)
    held_out_count = math.floor(len(latents) * _HELD_OUT_SHARE)
    held_out_count = min(held_out_count, max(0, len(latents) - math.ceil(codebook_size / ranks)))
    fitted, held_out = latents.tensor_split([len(latents) - held_out_count])
    counts = torch.tensor([len(fitted), len(held_out)], device="cpu")
    fitted_count, held_out_count = (distributed.sum_over_ranks(counts) if across_ranks else counts).tolist()
    if codebook_size <= fitted_count < 256 * codebook_size:
        warnings.warn(
            f"fitting {codebook_size} codes to {fitted_count} latents, {fitted_count / codebook_size:.0f} a code; "
            "below 256 a code the codebook overfits, give more data if there is more",
            stacklevel=2,
        )
    result = fit_kmeans(
        fitted,
        codebook_size,
        latents_per_code=None,  # no more were read than are wanted
        seed=seed,
        across_ranks=across_ranks,
        progress=progress,
    )
    errors, codes = nearest_point(held_out, result.centroids)
    if across_ranks:
        errors, codes = distributed.rows_of_all_ranks(errors), distributed.rows_of_all_ranks(codes)
    model.set_codebook(result.centroids)
    model.set_scaling_factor(_scaling_factor(latents, across_ranks))
    fit = CodebookFit(
        codebook_size=codebook_size,
        fitted_latents=fitted_count,
        held_out_latents=held_out_count,
        distortion=result.distortion,
        held_out_distortion=float(errors.square().mean()) if held_out_count else math.nan,
        held_out_usage=code_usage(codes, codebook_size) if held_out_count else math.nan,
        iterations=result.iterations,
    )
    return fit


def measure_scaling_factor(
    model: Tokenizer,
    batches: Iterable,
    *,
    latents: int = 65_536,
    across_ranks: bool | None = None,
    progress: bool = True,
) -> float:
    """Write one over the standard deviation of all values of so many latents into the config as `scaling_factor`.

    For models that need no fitting; `fit_codebook` does the same and explains the other arguments. Returns the factor;
    a ValueError if there are no batches, or latents that are all equal.
    """
    model = unwrapped(model)
    across_ranks = _across_ranks(across_ranks, "measure_scaling_factor")
    wanted = math.ceil(latents / (distributed.world_size() if across_ranks else 1))
    factor = _scaling_factor(_collect(model, batches, wanted, across_ranks, progress), across_ranks)
    model.set_scaling_factor(factor)
    return factor


def _across_ranks(asked: bool | None, function: str) -> bool:
    if asked is not None:
        return asked
    together = distributed.all_ranks_call(function)
    if not together and distributed.world_size() > 1:
        warnings.warn(
            f"rank {distributed.rank()} alone called {function}, so the models of the other ranks stay as they are; "
            "save this one, or call it on every rank. across_ranks=False does the same without waiting",
            stacklevel=3,
        )
    return together


def _scaling_factor(latents: Tensor, across_ranks: bool) -> float:
    values = latents.double()
    sums = torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()]).cpu()
    count, total, squares = (distributed.sum_over_ranks(sums) if across_ranks else sums).tolist()
    variance = squares / count - (total / count) ** 2
    # Rounding leaves some of equal values.
    return variance**-0.5 if variance > 1e-12 * squares / count else math.inf


def _collect(model: Tokenizer, batches: Iterable, wanted: int, across_ranks: bool, progress: bool) -> Tensor:
    """[N, d] latents of this rank on the model's device, at most `wanted`."""
    was_training = model.training
    model.eval()
    found: list[Tensor] = []
    count = 0
    with distributed.failing_together(across_ranks):
        try:
            how = {"desc": "Encoding", "unit": "latent", "unit_scale": True, "shown": progress}
            with progress_bar(total=wanted, **how) as bar:
                for batch in check_batches(batches):
                    found.append(_latents(model, batch)[: wanted - count])
                    count += len(found[-1])
                    bar.update(len(found[-1]))
                    if count == wanted:
                        break
                bar.total = count  # the batches may end before there are as many as wanted
        finally:
            model.train(was_training)
        if not found:
            raise ValueError("no batches to fit a codebook to; was the iterator used up before?")
        latents = torch.cat(found)
    passes = getattr(batches, "passes", 0)
    if passes >= _FEW_PASSES and distributed.rank() == 0:
        _log.warning(
            "these %d latents are of %.0f passes over the data, with other crops or segments of the same items; the "
            "codebook fits those items, and new ones less well: give more data if there is more",
            len(latents),
            passes,
        )
    if across_ranks and distributed.world_size() > 1:
        _warn_of_equal_parts(latents)
    return latents


def _warn_of_equal_parts(latents: Tensor) -> None:
    sums = distributed.rows_of_all_ranks(latents.double().sum(dim=0, keepdim=True))
    if (sums == sums[0]).all():
        warnings.warn(
            f"all {len(sums)} ranks gave the same {len(latents)} latents, which count once; give each rank its own "
            "part of the data, or call this on one rank with across_ranks=False",
            stacklevel=4,
        )


def _latents(model: Tokenizer, batch: Any) -> Tensor:
    """[n, d] of a batch, without those of padding."""
    inputs, mask = batch_inputs(model, batch)
    latents = model.latent_vectors(inputs, mask)
    return latents.flatten(0, -2) if mask is None else latents[model.token_mask(mask)]
