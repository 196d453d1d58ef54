"""The Hub: model cards, pushing, and errors that say what to do. This part reads saved folders and builds no model."""

from .card import write_card, write_pipeline_card, write_pipeline_results, write_results
from .contents import class_in, explain_contents
from .errors import hub_errors
from .push import push_folder, push_pipeline
from .saved import HUB_ENTRIES, HubEntry, hub_entry, read_results, read_saved

__all__ = [
    "HUB_ENTRIES",
    "HubEntry",
    "class_in",
    "explain_contents",
    "hub_entry",
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
