"""Training a tokenizer and fitting its codebook.

This package exports what fits a tokenizer. Import `vpvae_hf.training.run.train_tokenizer` for a whole run and
`vpvae_hf.training.trainer.Trainer` for the loop alone; a tokenizer that is only used needs neither.
"""

from .fit import CodebookFit, fit_codebook, measure_scaling_factor

__all__ = ["CodebookFit", "fit_codebook", "measure_scaling_factor"]
