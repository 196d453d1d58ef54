"""`vpvae fit`: a codebook, of any size, for a saved tokenizer."""

import argparse
from dataclasses import asdict

from vpvae_hf import fit_codebook
from vpvae_hf.files import claim_output_folder
from vpvae_hf.hub import read_results, write_results

from .inputs import inputs_for
from .tokenizers import load_tokenizer, loading_code


def run(options: argparse.Namespace) -> None:
    """Fit and save."""
    output = options.output
    claim_output_folder(output, overwrite=options.overwrite)
    model = load_tokenizer(options.tokenizer)
    batches = inputs_for(model, options).shuffled(options.seed)
    fit = fit_codebook(
        model, batches, options.codebook_size, latents_per_code=options.latents_per_code, seed=options.seed
    )
    model.save_pretrained(output)
    # What was measured with the former codebook does not hold for this one.
    write_results(output, read_results(options.tokenizer) | {"codebook": asdict(fit), "evaluation": []})
    print(
        f"{fit.codebook_size} codes fitted to {fit.fitted_latents} latents: mean squared error {fit.distortion:.4f}, "
        f"on {fit.held_out_latents} others {fit.held_out_distortion:.4f}, CVU {fit.held_out_usage:.3f}"
    )
    print(f"saved: {loading_code(model, output)}")
