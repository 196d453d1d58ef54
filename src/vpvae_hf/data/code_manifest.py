"""`tokenizer.json` beside files of codes: what made them, so that they are never mixed with those of another run."""

from pathlib import Path
from typing import Any

from vpvae_hf.files import read_json, require_folder, write_json

MANIFEST = "tokenizer.json"
# Where the tokenizer lies may change, what it is may not; counts come when all files are there.
_MAY_DIFFER = frozenset(("tokenizer", "tokenizer_revision", "images", "unreadable_images", "clips", "unreadable_clips"))


def claim_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Make a folder that of a run, or see that it is already. Ranks may do so at once.

    Args:
        settings: of the run, as JSON stores them.

    Raises:
        FileExistsError: it holds other files, or is one.
        ValueError: it is that of a run with other settings.
    """
    require_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MANIFEST).exists():
        # Another rank may be writing the manifest, aside.
        others = [file.name for file in folder.iterdir() if not file.name.startswith(f".{MANIFEST}")]
        if others and not (folder / MANIFEST).exists():
            raise FileExistsError(f"{folder} holds other files ({min(others)}) and no {MANIFEST}; name another folder")
        write_json(folder / MANIFEST, settings)
    held = read_json(folder / MANIFEST)
    for name, value in settings.items():
        if name not in _MAY_DIFFER and held.get(name) != value:
            raise ValueError(
                f"{folder} holds codes of another run: its {name} is {held.get(name)!r}, here it is {value!r}; "
                "go on with the same settings, or name another folder"
            )


def write_totals(folder: Path, **counts: int) -> None:
    """Add the counts of a finished run: `images` and `unreadable_images`, or `clips` and `unreadable_clips`."""
    held = read_json(folder / MANIFEST)
    write_json(folder / MANIFEST, held | counts)
