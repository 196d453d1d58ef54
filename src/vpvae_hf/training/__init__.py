"""Training a tokenizer and fitting its codebook."""

from .fit import CodebookFit, fit_codebook
from .loop import TrainingHistory, train

__all__ = ["CodebookFit", "TrainingHistory", "fit_codebook", "train"]
