"""Fits the codebook, or the levels, after training, eq. (12).

Shapes: N latents, K codes, d dimensions, L_i levels of dimension i.
"""

import logging
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vpvae_hf import distributed
from vpvae_hf.codebook import fit_kmeans, fit_nested_kmeans, require_nested_sizes
from vpvae_hf.metrics import code_usage
from vpvae_hf.models.decoder_metric import decoder_metric
from vpvae_hf.models.inputs import batch_inputs, check_batches, unwrapped
from vpvae_hf.models.tokenizer import Tokenizer
from vpvae_hf.neighbors import nearest_point
from vpvae_hf.progress import progress_bar
from vpvae_hf.quantizers import QuantizerConfig
from vpvae_hf.quantizers.codebook import require_metric, square_root, transformed
from vpvae_hf.settings import Metric, plain, require_integer

_log = logging.getLogger(__name__)

# One latent in ten is left out of the fit, to measure the codebook on.
_HELD_OUT_SHARE = 0.1
# A fit that takes this many passes over the data warns, since it sees the same items again, only with other crops.
_FEW_PASSES = 2
# Number of tokens that the decoder's metric is measured on. More tokens change it less than other data would.
_METRIC_TOKENS = 16_384
# With so few latents and iterations, a codebook's error is within about 10% of the final one: enough for the metric.
_PREVIEW_PER_CODE, _PREVIEW_ITERATIONS = 32, 1


@dataclass(frozen=True)
class CodebookFit:
    """How well a codebook of K codes, or levels that make K codes, fits latents.

    Attributes:
        fitted_latents, held_out_latents: how many latents it was fitted to, and measured on.
        distortion: mean squared distance of a fitted latent to its code, in the metric.
        held_out_distortion: the same for the held-out latents.
        held_out_usage: code usage (CVU) on the held-out latents, exp(entropy of code use) / K.
        metric: the metric of distances, "euclidean" or "decoder"; squared distances are about equally large in both.
        others: the fits of further codebooks that were fitted together with this one.
    """

    codebook_size: int
    fitted_latents: int
    held_out_latents: int
    distortion: float
    held_out_distortion: float
    held_out_usage: float
    iterations: int
    metric: Metric = "euclidean"
    others: tuple["CodebookFit", ...] = ()

    def __str__(self) -> str:
        held_out = f"{self.held_out_distortion:.4f} on {self.held_out_latents} others, CVU {self.held_out_usage:.3f}"
        where = " in the decoder's metric" if self.metric == "decoder" else ""
        own = (
            f"{self.codebook_size} codes fitted to {self.fitted_latents} latents: mean squared error{where} "
            f"{self.distortion:.4f}, {held_out if self.held_out_latents else 'not measured on others'}"
        )
        return "\n".join([own, *map(str, self.others)])


def fit_codebook(
    model: Tokenizer,
    batches: Iterable,
    codebook_size: int | Sequence[int] | None = None,
    *,
    latents_per_code: int = 256,
    metric: Metric = "euclidean",
    nested: bool = False,
    seed: int = 0,
    across_ranks: bool | None = None,
    progress: bool = True,
) -> CodebookFit:
    """Encode a fresh pass over data, cluster the latents, and install the codebook in the model and its config.

    The config's `scaling_factor` becomes one over the latents' standard deviation.

    Batches are read until they end, or until there are `latents_per_code` latents per code of the largest codebook
    and a ninth more to measure on; so shuffle them. The same data and seed give the same codebook. The function may
    be called again, also with another codebook size; if a tokenizer of kind "vp" is then trained further, its
    perturbation is scaled for that size.

    If several sizes are given, a codebook of each is fitted to the same latents, as many as the largest one needs,
    and they replace all codebooks of the model. The first one decides the codes until `model.select_codebook`
    chooses another. If they are `nested`, the codes of a larger codebook divide the cells of a smaller one:
    `model.coarser_codes` turns codes of the larger one into codes of the smaller one, so that a stream of codes can
    be cut to fewer bits. Nested codebooks are somewhat worse than codebooks that are fitted on their own.

    Kinds that have codes without a fit can also be fitted, so that latents lie nearer to their codes. The kinds "vq"
    and "simvq" get a codebook of any size, which decides the codes in place of the learned one. The kinds "fsp" and
    "fsq" get levels that minimize the mean squared error of each dimension's latents (Lloyd-Max); check with `vpvae
    evaluate` whether that helps, since their decoders were trained on even levels. Further training changes the
    latents, so `Trainer` calls `model.drop_fit()` when it starts: the learned codebook or the even levels then decide
    the codes again. `train_tokenizer` fits once more at its end if `codebook.refit` is set.

    While VP trains, it keeps a live codebook of its queue of recent latents, which estimates the quantization error and
    is used in validations. The codebook that is saved is the one that this function fits to fresh latents.

    Args:
        model: a tokenizer, which DistributedDataParallel, torch.compile or peft may have wrapped; its mode and device
            do not change.
        batches: each holds inputs as the model takes them; or is a mapping that holds them as "pixel_values" or
            "input_values", and the "padding_mask" of padded audio; or a tuple or list of inputs and labels.
        codebook_size: K, or several; by default the size of the selected codebook. Kinds with levels allow no other
            size.
        latents_per_code: how many latents to fit to, per code of the largest codebook. With fewer than 256 the codebook
            overfits, and a warning says so.
        metric: the distance between latents, here and when they are encoded: "euclidean", or "decoder", in which a
            displacement that changes the decoder's output more is longer (`decoder_metric`). "decoder" is for codebooks
            only. This metric is measured on some 16,000 of the latents, which are decoded 2 d times for it.
        nested: fit codebooks within each other; each size must be a multiple of the next smaller one.
        seed: seed of K-means, and of the metric.
        across_ranks: in a distributed job, True fits to the latents of all ranks together. Every rank must make this
            call, each with its own model of equal weights and its own part of the data; all end with the same codebook.
            False fits on this rank alone, and does not change the models of the other ranks. None, the default, means
            True if all ranks make the call within a minute, and otherwise False, with a warning.
        progress: show bars on stderr.

    Raises:
        TypeError: `model` is no tokenizer, or `batches` is no iterable of batches.
        ValueError: the quantizer has nothing to fit; there are fewer (distinct) latents than codes; latents are NaN or
            infinite; or, with metric="decoder", the decoder's output does not depend on the latents, or there are no
            more latents than codes.
        RuntimeError: `across_ranks` is None, and another rank fits, or has fitted, its model alone.
    """
    model = unwrapped(model)
    config = model.quantize.config
    sizes = require_fittable(config, metric, codebook_size, nested)
    require_integer("latents_per_code", latents_per_code, 1)
    across_ranks = _across_ranks(across_ranks, "fit_codebook")
    ranks = distributed.world_size() if across_ranks else 1
    wanted = math.ceil(max(sizes) * latents_per_code / ranks)
    wanted += round(wanted * _HELD_OUT_SHARE / (1 - _HELD_OUT_SHARE))
    whole = math.ceil(_METRIC_TOKENS / ranks) if metric == "decoder" else 0
    latents, samples = _collect(model, batches, wanted, across_ranks, progress, whole)
    held_out_count = math.floor(len(latents) * _HELD_OUT_SHARE)
    held_out_count = min(held_out_count, max(0, len(latents) - math.ceil(max(sizes) / ranks)))
    fitted, held_out = latents.tensor_split([len(latents) - held_out_count])
    fitted = fitted[: math.ceil(max(sizes) * latents_per_code / ranks)]  # rounding may have added some
    counts = torch.tensor([len(held_out), len(fitted)], device="cpu")
    held_out_count, fitted_count = (distributed.sum_over_ranks(counts) if across_ranks else counts).tolist()
    _warn_of_few(max(config.levels) if config.fits == "levels" else max(sizes), fitted_count)
    how = {"seed": seed, "across_ranks": across_ranks}
    measured = root = None
    if metric == "decoder":
        preview = {"latents_per_code": _PREVIEW_PER_CODE, "max_iterations": _PREVIEW_ITERATIONS}
        error = fit_kmeans(fitted, sizes[0], **preview, **how).distortion
        if not error:
            raise ValueError(
                f"each of the {fitted_count} latents is one of {sizes[0]} codes, so there is no quantization error "
                'to measure the metric with; give more data, or use metric="euclidean"'
            )
        measured = _measured_metric(model, samples, math.sqrt(error / model.quantize.latent_dim), how)
        root = square_root(measured, model.quantize.latent_dim)
        fitted, held_out = (transformed(each, root.to(each)) for each in (fitted, held_out))
    how |= {"progress": progress}
    at_once = how | {"latents_per_code": None}  # exactly as many as wanted were read
    if config.fits == "levels":
        columns = fitted.split(1, dim=1)
        results = [[fit_kmeans(column, count, **at_once) for column, count in zip(columns, config.levels, strict=True)]]
        model.set_levels([result.centroids.flatten().sort().values for result in results[0]])
        reconstructed, codes = model.quantize.nearest(held_out)
        found = [(torch.linalg.vector_norm(reconstructed - held_out, dim=1), codes)]
    else:
        if nested:
            of_sizes = dict(zip(sorted(sizes), fit_nested_kmeans(fitted, sizes, **how), strict=True))
            results = [[of_sizes[size]] for size in sizes]
        else:
            results = [[fit_kmeans(fitted, size, **at_once)] for size in sizes]
        codebooks = [result.centroids for (result,) in results]
        found = [nearest_point(held_out, codebook) for codebook in codebooks]
        if root is not None:  # back from the metric's space
            codebooks = [codebook.double() @ torch.linalg.inv(root).to(codebook.device) for codebook in codebooks]
        model.set_codebooks(codebooks, measured, nested=nested)
    if across_ranks:
        found = [tuple(map(distributed.rows_of_all_ranks, each)) for each in found]
    model.set_scaling_factor(_scaling_factor(latents, across_ranks))
    fits = [
        CodebookFit(
            codebook_size=size,
            fitted_latents=fitted_count,
            held_out_latents=held_out_count,
            distortion=sum(each.distortion for each in of_size),
            held_out_distortion=float(distances.square().mean()) if held_out_count else math.nan,
            held_out_usage=code_usage(codes, size) if held_out_count else math.nan,
            iterations=max(each.iterations for each in of_size),
            metric=metric,
        )
        for size, of_size, (distances, codes) in zip(sizes, results, found, strict=True)
    ]
    return replace(fits[0], others=tuple(fits[1:]))


def _sizes(config: QuantizerConfig, codebook_size: int | Sequence[int] | None) -> list[int]:
    given = plain(config.codebook_size if codebook_size is None else codebook_size)
    several = isinstance(given, Iterable) and not isinstance(given, str)
    sizes = list(given) if several else [given]
    for size in sizes:
        require_integer("codebook_size", size, 2)
    if not sizes or len({*sizes}) < len(sizes):
        raise ValueError(f"codebook_size must be a size, or several that differ, got {given}")
    if config.fits == "levels" and sizes != [config.codebook_size]:
        raise ValueError(
            f"the levels {config.levels} of the {config.kind!r} quantizer make {config.codebook_size} codes, got "
            f"codebook_size={given}; leave it out, or train a model with other levels"
        )
    return [int(size) for size in sizes]  # numpy integers cannot be stored in a config


def _warn_of_few(codes: int, latents: int) -> None:
    if codes <= latents < 256 * codes:
        warnings.warn(
            f"fitting {codes} codes to {latents} latents, {latents / codes:.0f} per code; below 256 per code the "
            "codebook overfits; give more data if there is more",
            stacklevel=3,
        )


def require_fittable(
    config: QuantizerConfig,
    metric: Metric = "euclidean",
    codebook_size: int | Sequence[int] | None = None,
    nested: bool = False,
) -> list[int]:
    """Each K that `fit_codebook` would fit; a ValueError if it cannot fit a quantizer with these settings."""
    require_metric(metric)
    if config.fits is None:
        raise ValueError(
            f"the {config.kind!r} quantizer needs no fitting, and has nothing to fit; the model can be saved and used "
            "as it is"
        )
    if config.fits == "levels" and metric != "euclidean":
        raise ValueError(
            f"metric={metric!r} is for codebooks, and the {config.kind!r} quantizer has levels, one set per "
            'dimension; use metric="euclidean"'
        )
    if config.fits == "levels" and nested:
        raise ValueError(f"nested=True is for codebooks, and the {config.kind!r} quantizer has levels; leave it out")
    sizes = _sizes(config, codebook_size)
    if nested:
        require_nested_sizes(sizes)
    return sizes


def _measured_metric(
    model: Tokenizer, samples: Sequence[Tensor], displacement: float, how: Mapping[str, Any]
) -> Tensor:
    was_training = model.training
    model.eval()
    try:
        return decoder_metric(model, samples, displacement, **how)
    finally:
        model.train(was_training)


def measure_scaling_factor(
    model: Tokenizer,
    batches: Iterable,
    *,
    latents: int = 65_536,
    across_ranks: bool | None = None,
    progress: bool = True,
) -> float:
    """Set the config's `scaling_factor` to one over the standard deviation of latents, and return it.

    This is for models that need no fitting; `fit_codebook` does the same and explains the other arguments. Raises a
    ValueError if there are no batches or all latents are equal.
    """
    model = unwrapped(model)
    across_ranks = _across_ranks(across_ranks, "measure_scaling_factor")
    wanted = math.ceil(latents / (distributed.world_size() if across_ranks else 1))
    found, _ = _collect(model, batches, wanted, across_ranks, progress)
    factor = _scaling_factor(found, across_ranks)
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
    # Rounding gives equal values a small deviation.
    return variance**-0.5 if variance > 1e-12 * squares / count else math.inf


def _collect(
    model: Tokenizer, batches: Iterable, wanted: int, across_ranks: bool, progress: bool, whole: int = 0
) -> tuple[Tensor, list[Tensor]]:
    """At most `wanted` latents [N, d] of this rank on the model's device; about `whole` of them also as grids.

    The grids are [b, *grid, d].
    """
    was_training = model.training
    model.eval()
    found: list[Tensor] = []
    samples: list[Tensor] = []
    count = 0
    with distributed.failing_together(across_ranks):
        try:
            how = {"desc": "Encoding", "unit": "latent", "unit_scale": True, "shown": progress}
            with progress_bar(total=wanted, **how) as bar:
                for batch in check_batches(batches):
                    grids = _latents(model, batch)
                    for grid in grids:
                        if whole > 0 and grid.numel():
                            items = math.ceil(whole * len(grid) / grid[..., 0].numel())
                            samples.append(grid[:items])
                            whole -= samples[-1][..., 0].numel()
                    found.append(torch.cat([grid.flatten(0, -2) for grid in grids])[: wanted - count])
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
            "these %d latents come from %.0f passes over the data, so they show the same items in other crops or "
            "segments, and the codebook will fit new items less well; give more data if there is more",
            len(latents),
            passes,
        )
    if across_ranks and distributed.world_size() > 1:
        _warn_of_equal_parts(latents)
    return latents, samples


def _warn_of_equal_parts(latents: Tensor) -> None:
    sums = distributed.rows_of_all_ranks(latents.double().sum(dim=0, keepdim=True))
    if (sums == sums[0]).all():
        warnings.warn(
            f"all {len(sums)} ranks gave the same {len(latents)} latents, which count once; give each rank its own "
            "part of the data, or call this on one rank with across_ranks=False",
            stacklevel=4,
        )


def _latents(model: Tokenizer, batch: Any) -> list[Tensor]:
    """Latents [B, *grid, d] of a batch; for padded audio, those [1, n, d] of each clip without its padding."""
    inputs, mask = batch_inputs(model, batch)
    latents = model.latent_vectors(inputs, mask)
    if mask is None:
        return [latents]
    return [clip[valid][None] for clip, valid in zip(latents, model.token_mask(mask), strict=True)]
