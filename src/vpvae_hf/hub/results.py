"""What was measured of a tokenizer: results.json in its folder, which its card tells of."""

import os
from pathlib import Path
from typing import Any

from vpvae_hf.files import write_json

from .card import write_card
from .saved_tokenizer import RESULTS, read_saved


def read_results(folder: str | os.PathLike) -> dict[str, Any]:
    """The results in a saved tokenizer's folder; empty where there are none, as for a hub id."""
    return read_saved(folder).results if Path(folder).is_dir() else {}


def write_results(folder: str | os.PathLike, results: dict[str, Any], *, repo_id: str | None = None) -> None:
    """Write results.json into a saved tokenizer's folder, and the card anew.

    Args:
        results: "training", "codebook" and "evaluation", each of which may be missing.
        repo_id: repository that the card is for; None while that is not known.
    """
    write_json(Path(folder) / RESULTS, results)
    write_card(folder, repo_id)
