"""`vpvae fit`: a codebook of any size, or levels, for a saved tokenizer."""

import argparse
from collections.abc import Iterator
from dataclasses import asdict

from torch import Tensor

from vpvae_hf import fit_codebook
from vpvae_hf.bundled import bundled_or_given
from vpvae_hf.data import ItemLoader
from vpvae_hf.files import claim_output_folder
from vpvae_hf.hub import read_results, write_results
from vpvae_hf.modalities import Batches, load_tokenizer, modality_of

from .inputs import data_config, execution_of


def run(options: argparse.Namespace) -> None:
    """Fit and save."""
    output = options.output
    claim_output_folder(output, overwrite=options.overwrite)
    execution = execution_of(options)
    model = execution.prepare(load_tokenizer(options.tokenizer, device=execution.find_device()))
    batches = Batches(modality_of(model), model, data_config(options, model), batch_size=options.batch_size)
    items = batches.fitting(options.seed)
    items = items if options.limit is None else _FirstItems(items, options.limit)
    how = {
        "latents_per_code": options.latents_per_code,
        "metric": options.metric,
        "seed": options.seed,
        "nested": options.nested,
    }
    fit = fit_codebook(model, items, options.codebook_size, **how)
    model.save_pretrained(output)
    # Metrics of the former codebook do not hold for the new one.
    former = read_results(bundled_or_given(options.tokenizer))
    write_results(output, former | {"codebook": asdict(fit), "evaluation": []})
    print(fit)
    print(f'saved: {type(model).__name__}.from_pretrained("{output}")')


class _FirstItems:
    """A loader's batches, up to `limit` items; `passes` is the loader's."""

    def __init__(self, loader: ItemLoader, limit: int):
        self._loader, self._limit = loader, limit

    passes = property(lambda self: self._loader.passes)

    def __iter__(self) -> Iterator[Tensor | dict[str, Tensor]]:
        left = self._limit
        for batch in self._loader:
            if isinstance(batch, dict):
                yield {name: values[:left] for name, values in batch.items()}
                left -= len(next(iter(batch.values())))
            else:
                yield batch[:left]
                left -= len(batch)
            if left <= 0:
                return
