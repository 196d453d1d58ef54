"""Training a tokenizer and fitting its codebook.

Fitting is here. A whole run is `vpvae_hf.training.run.train_tokenizer`, the loop alone
`vpvae_hf.training.trainer.Trainer`; they are imported on their own, since using a tokenizer needs neither.
"""

from .fit import CodebookFit, fit_codebook, measure_scaling_factor

__all__ = ["CodebookFit", "fit_codebook", "measure_scaling_factor"]
