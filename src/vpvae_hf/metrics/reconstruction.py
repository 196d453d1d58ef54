"""How well a tokenizer reconstructs held-out inputs: B images or clips per batch, each a grid of latents [d]."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vpvae_hf import distributed
from vpvae_hf.models.inputs import batch_inputs, check_batches, unwrapped
from vpvae_hf.neighbors import nearest_point
from vpvae_hf.tensors import as_real

from .codes import code_statistics, sum_of_defined
from .frechet import feature_moments, frechet_distance

if TYPE_CHECKING:
    from vpvae_hf.models import Tokenizer

# (reconstruction, original), two batches of one shape -> name -> [B]; NaN for an item that has no value.
MetricFn = Callable[[Tensor, Tensor], dict[str, Tensor]]
# A batch -> features [B, D].
FeatureFn = Callable[[Tensor], Tensor]

_SQUARED_ERROR = "squared_error"


@dataclass(frozen=True)
class ReconstructionQuality:
    """What was measured.

    Attributes:
        metrics: means over items under the names that `metric_fn` gives: "NAME" for decoded codes, "NAME_unquantized"
            for decoded continuous latents. Then "code_usage", "perplexity" and "codes_used" over all tokens, see
            `code_statistics` (means over groups if a token has several codes), and "quantization_error_rms", the root
            mean square distance of a latent to its code. A tokenizer without codes has none of these four, and "NAME"
            is for its continuous latents.
        undefined: for each of those means, the number of items left out because their value was NaN; the mean is NaN if
            all of them were.
        items, tokens: how many were measured.
        item_values: [items] float64 on the CPU for each of those means, NaN for an item that has no value; in the order
            of the batches, those of the first rank first.
    """

    metrics: dict[str, float]
    undefined: dict[str, int]
    items: int
    tokens: int
    item_values: dict[str, Tensor] = field(repr=False, compare=False)


def evaluate_reconstruction(
    model: "Tokenizer",
    batches: Iterable,
    codebook: Tensor | None = None,
    *,
    metric_fn: MetricFn,
    quantized: bool = True,
    unquantized: Collection[str] | None = (),
    across_ranks: bool = False,
    refine_steps: int = 0,
    frechet: Mapping[str, FeatureFn] | None = None,
) -> ReconstructionQuality:
    """Measure a tokenizer, in eval mode, without changing it.

    Args:
        model: a tokenizer, which DistributedDataParallel, torch.compile or peft may have wrapped.
        batches: images [B, C, H, W] or clips [B, 1, T], in [-1, 1], or whatever else `fit_codebook` takes, but without
            padding. Batches may differ in shape.
        codebook: [K, d] to quantize with in place of the model's own, e.g. a preview during training.
        metric_fn: what to measure, e.g. `image_quality`, or `audio_quality` with its sampling rate.
        quantized: False measures only decoded continuous latents, as for a tokenizer without codes.
        unquantized: the names of the metrics that are also measured for decoded continuous latents; None for all.
        across_ranks: in a distributed job, measure the batches of all ranks together. Ranks may have different numbers
            of batches. Every rank must make this call, and all get the same result.
        refine_steps: measure codes that `tokenize` has refined in so many steps; not together with a codebook.
        frechet: name -> function that gives features; the Fréchet distance between the features of all reconstructions
            and of all originals is measured under that name.

    A codebook that is not fitted raises a CodebookNotFittedError unless one is given, and a model without codes a
    NoCodesError if they are to be refined.
    """
    model = unwrapped(model)
    device = next(model.parameters()).device
    groups, size = model.quantize.code_groups, model.quantize.codebook_size or 0
    if refine_steps:
        model.quantize.check_codes()
    if codebook is not None:
        if refine_steps:
            raise ValueError("refine_steps needs the model's own codebook; call model.set_codebook(codebook) instead")
        codebook = as_real(codebook, "codebook")
        groups, size = 1, len(codebook)
    if not quantized:
        groups, size = 1, 0
    # Kept on the device until the end: fetching them after each batch would leave a GPU idle meanwhile.
    totals: dict[str, Tensor] = {}
    values: dict[str, list[Tensor]] = {}
    moments: dict[str, Tensor] = {}
    counts = torch.zeros(groups * size, device=device, dtype=torch.long)
    with distributed.failing_together(across_ranks):
        for batch in check_batches(batches):
            batch, mask = batch_inputs(model, batch)
            if mask is not None and not mask.all():
                raise ValueError("padding would be measured as signal; give signals of different lengths one by one")
            needed = unquantized is None or len(unquantized) > 0
            made = reconstruct(
                model, batch, codebook, quantized=quantized, unquantized=needed, refine_steps=refine_steps
            )
            measured = _measured(made, batch, metric_fn, unquantized)
            sums = {name: sum_of_defined(each) for name, each in measured.items()}
            totals = _added_up([totals, sums | {_SQUARED_ERROR: sum_of_defined(made.squared_error)}])
            for name, each in measured.items():
                values.setdefault(name, []).append(each.double())
            for name, features in (frechet or {}).items():
                both = torch.stack([feature_moments(features(x.clamp(-1, 1))) for x in (made.quantized, batch)])
                moments = _added_up([moments, {name: both}])
            if made.codes is not None:
                apart = (made.codes.reshape(-1, groups) + size * torch.arange(groups, device=device)).flatten()
                counts.index_add_(0, apart, torch.ones_like(apart))
    totals, counts = {name: sums.cpu() for name, sums in totals.items()}, counts.cpu()
    moments = {name: both.cpu() for name, both in moments.items()}
    item_values = [{name: torch.cat(each).cpu() for name, each in values.items()}]
    if across_ranks:
        # A rank without batches does not know the names.
        totals = _added_up(distributed.objects_of_all_ranks(totals))
        moments = _added_up(distributed.objects_of_all_ranks(moments))
        item_values = [each for each in distributed.objects_of_all_ranks(item_values[0]) if each]
        counts = distributed.sum_over_ranks(counts)
    if not totals:
        raise ValueError("no batches to evaluate")
    squared_error, _, tokens = totals.pop(_SQUARED_ERROR)
    metrics = {name: float(total / defined) for name, (total, defined, _) in totals.items()}
    metrics |= {name: frechet_distance(*both) for name, both in moments.items()}
    if size:
        statistics = [code_statistics(group) for group in counts.view(groups, size)]
        metrics |= {name: sum(each[name] for each in statistics) / groups for name in statistics[0]}
        metrics["quantization_error_rms"] = float((squared_error / tokens).sqrt())
    return ReconstructionQuality(
        metrics=metrics,
        undefined={name: int(items - defined) for name, (_, defined, items) in totals.items()},
        items=int(next(iter(totals.values()))[2]),
        tokens=int(tokens),
        item_values={name: torch.cat([each[name] for each in item_values]) for name in item_values[0]},
    )


@dataclass(frozen=True)
class Reconstruction:
    """A batch through a tokenizer.

    Attributes:
        quantized, unquantized: shaped as the batch, from codes and from continuous latents; `unquantized` is None if it
            was not asked for.
        codes: [B, *grid] or [B, *grid, G] int64; the grid is [h, w] of an image, [N] of a clip. None if the tokenizer
            has none, or none were asked for; then `quantized` is made from continuous latents.
        squared_error: [B, *grid] squared distance of each latent to its code.
    """

    quantized: Tensor
    unquantized: Tensor | None
    codes: Tensor | None
    squared_error: Tensor


@torch.no_grad()
def reconstruct(
    model: "Tokenizer",
    batch: Tensor,
    codebook: Tensor | None = None,
    *,
    quantized: bool = True,
    unquantized: bool = True,
    refine_steps: int = 0,
) -> Reconstruction:
    """Encode and decode a batch in eval mode; arguments as for `evaluate_reconstruction`.

    Args:
        unquantized: whether continuous latents are to be decoded too.
    """
    model = unwrapped(model)
    batch, was_training = model.as_inputs(batch), model.training
    model.eval()
    try:
        latents = model.latent_vectors(batch)
        if not (quantized and model.quantize.has_codes):
            codes, vectors = None, latents
        elif codebook is None:
            codes = model.tokenize(batch, refine_steps=refine_steps) if refine_steps else model.quantize.encode(latents)
            vectors = model.quantize.decode(codes)
        else:
            codebook = as_real(codebook, "codebook").to(batch.device)
            _, flat = nearest_point(latents.flatten(0, -2), codebook)
            codes = flat.view(latents.shape[:-1])
            vectors = codebook[codes]
        # A clip's last code may stand for samples beyond its end.
        last = batch.shape[-1]
        return Reconstruction(
            quantized=model.decode_vectors(vectors)[..., :last],
            unquantized=model.decode_vectors(latents)[..., :last] if unquantized else None,
            codes=codes,
            squared_error=(vectors - latents).double().square().sum(dim=-1),
        )
    finally:
        model.train(was_training)


def _measured(
    made: Reconstruction, batch: Tensor, metric_fn: MetricFn, unquantized: Collection[str] | None
) -> dict[str, Tensor]:
    """Name -> [B]."""
    values = metric_fn(made.quantized, batch)
    unquantized = values.keys() if unquantized is None else unquantized
    if unknown := set(unquantized) - values.keys():
        raise ValueError(f"`metric_fn` gives no {', '.join(sorted(unknown))}; it gives {', '.join(values)}")
    if unquantized:
        others = metric_fn(made.unquantized, batch)
        values = values | {f"{name}_unquantized": others[name] for name in unquantized}
    return values


def _added_up(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    totals = {}
    for part in parts:
        for name, sums in part.items():
            totals[name] = totals.get(name, 0) + sums
    return totals
