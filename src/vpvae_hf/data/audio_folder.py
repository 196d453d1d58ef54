"""A local folder of audio files as a data set. `datasets` makes one only where torchcodec is installed."""

import os
from pathlib import Path

_AUDIO = frozenset((".flac", ".mp3", ".ogg", ".wav"))
# With any of these in it, a folder is a data set for `datasets` to read.
_DATA = frozenset((".arrow", ".parquet", ".tar", ".zip"))
_SPLITS = ("train", "validation", "test")


def is_audio_folder(name: str) -> bool:
    """Whether it is a local folder with audio files and no files of data."""
    kinds = {file.suffix.lower() for file in _files_below(Path(name))}
    return not kinds.isdisjoint(_AUDIO) and kinds.isdisjoint(_DATA)


def audio_splits(folder: Path) -> dict[str, list[Path]]:
    """Audio files of each split in the order of their names: of the sub-folders "train", "validation" and "test" where
    there are any, otherwise all as "train".

    Raises:
        ValueError: files outside of the sub-folders.
    """
    files = sorted(file for file in _files_below(folder) if file.suffix.lower() in _AUDIO)
    splits = {split: [file for file in files if file.relative_to(folder).parts[0] == split] for split in _SPLITS}
    splits = {split: of_split for split, of_split in splits.items() if of_split}
    if not splits:
        return {"train": files}
    outside = set(files).difference(*splits.values())
    if outside:
        raise ValueError(
            f"{folder} has audio files both in {', '.join(splits)} and outside, such as "
            f"{min(outside).relative_to(folder)}; move them to {', '.join(_SPLITS)} or elsewhere"
        )
    return splits


def audio_rows(folder: Path, files: list[Path]):
    """A `datasets.Dataset` of the columns "audio", with a path for each file, and "file_name" within the folder."""
    import datasets

    columns = {
        "audio": [str(file) for file in files],
        "file_name": [file.relative_to(folder).as_posix() for file in files],
    }
    # Cast afterwards: to encode the column takes torchcodec, even where its files stay as they are.
    return datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio(decode=False))


def _files_below(folder: Path) -> list[Path]:
    """All but hidden ones; links to folders are followed, since large data often lies elsewhere."""
    found: list[Path] = []
    seen: set[str] = set()  # links may lead back to where they are
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return found
