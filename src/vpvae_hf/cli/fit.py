"""`vpvae fit`: a codebook, of any size, for a saved tokenizer."""

import argparse
from dataclasses import asdict

from vpvae_hf import fit_codebook
from vpvae_hf.files import claim_output_folder
from vpvae_hf.hub import read_results, write_results
from vpvae_hf.modalities import Batches, load_tokenizer, modality_of

from .inputs import data_config


def run(options: argparse.Namespace) -> None:
    """Fit and save."""
    output = options.output
    claim_output_folder(output, overwrite=options.overwrite)
    model = load_tokenizer(options.tokenizer)
    batches = Batches(modality_of(model), model, data_config(options, model), batch_size=options.batch_size)
    how = {"latents_per_code": options.latents_per_code, "seed": options.seed}
    fit = fit_codebook(model, batches.fitting(options.seed), options.codebook_size, **how)
    model.save_pretrained(output)
    # Metrics of the former codebook do not hold for the new one.
    write_results(output, read_results(options.tokenizer) | {"codebook": asdict(fit), "evaluation": []})
    print(fit)
    print(f'saved: {type(model).__name__}.from_pretrained("{output}")')
