"""The Hub: model cards, pushing, and errors that say what to do. It reads saved folders and builds no model."""

from .card import write_card
from .errors import hub_errors
from .pipeline import push_pipeline, write_pipeline_card, write_pipeline_results
from .push import push_folder
from .results import read_results, write_results
from .saved_tokenizer import read_saved

__all__ = [
    "hub_errors",
    "push_folder",
    "push_pipeline",
    "read_results",
    "read_saved",
    "write_card",
    "write_pipeline_card",
    "write_pipeline_results",
    "write_results",
]
