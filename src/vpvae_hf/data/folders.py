"""Local files as data sets: which files at a path are read, their further columns, and their splits."""

import functools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from vpvae_hf import distributed
from vpvae_hf.settings import did_you_mean, require

_log = logging.getLogger(__name__)

# Names of folders that `datasets` also takes for splits, and the splits that they hold.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_ALIKE = re.compile(rf"({'|'.join(_SPLITS)})(?![a-z])", re.IGNORECASE)
# What `datasets` reads rows from.
_DATA = frozenset((".arrow", ".parquet", ".tar"))
_TABLES = frozenset(("metadata.csv", "metadata.jsonl", "metadata.parquet"))
_LISTS = frozenset((".csv", ".jsonl"))


def _suffixes(names: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in names.split())


# Suffixes of formats that libsndfile detects by content. Not among them: .raw, which has no header, and .mat and .htk,
# which seldom hold audio.
_AUDIO = _suffixes(
    "wav wave bwf rf64 w64 flac mp3 mp2 mp1 ogg oga opus aiff aif aifc au snd caf voc sph nist ircam sf avr iff svx "
    "8svx paf pvf sds mpc2k wve"
)
# Formats that Pillow only recognizes, or draws with another program.
_NO_PICTURES = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"))
_VIDEO = _suffixes("3g2 3gp asf avi flv m2ts m2v m4v mkv mov mp4 mpeg mpg mts mxf ogv vob webm wmv")
_UNREADABLE = {
    "image": _VIDEO
    | _suffixes(
        "heic heics heif heifs hif jxl jxr wdp bpg flif exr hdr svg svgz pdf eps ps ai wmf emf xcf kra psb djvu"
    )
    | _suffixes("3fr ari arw bay cr2 cr3 crw dcr dng erf fff iiq k25 kdc mef mos mrw nef nrw orf pef raf raw rw2")
    | _suffixes("rwl sr2 srf srw x3f"),
    "audio": _VIDEO
    | _suffixes(
        "m4a m4b m4p m4r aac adts wma ape wv mka mpc mpp ac3 eac3 dts dtshd thd mlp tta tak ofr shn alac spx amr"
    )
    | _suffixes("awb gsm ra ram rm dsf dff mid midi mod xm s3m it raw pcm xi sd2"),
}
_PACKED = _suffixes("zip 7z rar gz tgz bz2 xz zst")
_NOUNS = {"image": "images", "audio": "audio files"}
_CONVERTED = {"image": "PNG or JPEG", "audio": "WAV or FLAC"}
_MOST_NAMED = 3


def readable_suffixes(kind: str) -> frozenset[str]:
    """Suffixes, in lower case, of the "image" or "audio" files that can be read here."""
    if kind == "audio":
        return _AUDIO
    from PIL import Image

    Image.init()
    named = Image.registered_extensions()
    # Pillow reads MPO files as JPEG.
    return frozenset(each for each, name in named.items() if name in Image.OPEN.keys() - _NO_PICTURES) | {".mpo"}


def known_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of media and of other files that may hold a data set."""
    return _media_suffixes() | _DATA | _LISTS | _PACKED


def _media_suffixes() -> frozenset[str]:
    return readable_suffixes("image").union(readable_suffixes("audio"), *_UNREADABLE.values())


@functools.cache
def tell(message: str) -> None:
    """Warn the user once, on the first rank of a job."""
    if distributed.rank() == 0:
        _log.warning(message)


@dataclass
class _Found:
    """A folder's files by their kind, as names relative to the folder."""

    files: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    others: Counter = field(default_factory=Counter)  # suffix -> number
    closed: list[str] = field(default_factory=list)
    misnamed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LocalFiles:
    """The "image" or "audio" files at a path; none of them has been opened.

    Attributes:
        name: what messages call them.
        names: relative to the path.
        columns: a `pyarrow.Table`, whose column of the kind's name holds the files.
        features: the columns' types, as `datasets` describes them.
        splits: names of splits -> their rows.
    """

    kind: str
    name: str
    names: Sequence[str]
    columns: Any
    features: Any
    splits: dict[str, np.ndarray]

    @property
    def noun(self) -> str:
        """What messages call several of them."""
        return _NOUNS[self.kind]

    def rows(self, split: str):
        """A `datasets.Dataset` of one split, of several joined by "+", or of slices of them."""
        import datasets

        lengths = {name: len(rows) for name, rows in self.splits.items()}
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
        chosen = np.concatenate([self.splits[part.splitname][part.from_ : part.to] for part in parts])
        # Made from a table: encoding a column of audio would need torchcodec, even though its files stay as they are.
        table = datasets.table.InMemoryTable(self.columns.take(chosen))
        return datasets.Dataset(table, info=datasets.DatasetInfo(features=self.features))

    def set_aside(self, share: float) -> "LocalFiles":
        """These files with a share of their only split, "train", moved to a split "validation".

        A file's name decides its split, so every command sets the same files aside, and added files change nothing for
        others. A single file is in both splits.
        """
        if share == 0 or self.splits.keys() != {"train"}:
            return self
        everything = self.splits["train"]
        draws = np.array([_draw(self.names[row]) for row in everything])
        aside = draws < share
        # Neither part is empty.
        aside[draws.argmin()], aside[draws.argmax()] = True, len(draws) == 1
        validation, train = everything[aside], everything[~aside] if len(draws) > 1 else everything
        what = f"{len(validation)} of its {len(everything)} {self.noun}, chosen by their names, are"
        if len(everything) == 1:
            what = "its only file is both training and"
        tell(
            f"{self.name} has no split validation: {what} the validation split (validation_share {share:g}). To use "
            "all files as one split, name --split train, or in a recipe --data.validation_share 0"
        )
        return replace(self, splits={"train": train, "validation": validation})


def check_split(name: str, split: str, splits: Sequence[str], streaming: bool) -> None:
    """Raise a ValueError for a split, one of several joined by "+", that a data set does not have."""
    for part in split.split("+"):
        whole, bracket, _ = part.partition("[")
        if whole not in splits:
            near = did_you_mean(whole, splits).partition("?")
            hint = f" ({near[0]}?)" if near[1] else ""
            alone = whole == "validation" and list(splits) == ["train"]
            aside = "; of local files --validation-share sets a part aside" if alone else ""
            raise ValueError(
                f"data set {name} has no split {whole!r}; it has {', '.join(splits)}{hint}. Name one of them with "
                f"--split, in a recipe with --data.split or --data.validation_split (null: no validation){aside}"
            )
        if streaming and bracket:
            raise ValueError(f"a stream has no slices, got split {part!r}; name a whole split, or do without streaming")


def find_files(kind: str, name: str, path: Path) -> LocalFiles | None:
    """The "image" or "audio" files of a folder, of a list of files, or the one file that a path names.

    Links to folders are followed; hidden files and folders are left out. One warning lists what else is left out.

    Returns:
        None if `datasets` reads the path: files of data such as Parquet, and folders of them.

    Raises:
        ValueError: there is no such file, or the folders of splits do not hold all of them.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        return _find_in_folder(kind, name, path)
    if suffix in _LISTS:
        listed = _listed(path.parent, [path.name], anywhere=True)
        if listed is None:
            raise ValueError(f"{name} has no column file_name; it must name files, relative to the list's folder")
        return _files_of(kind, name, path.parent, *listed)
    if suffix in _DATA:
        return None
    if suffix in _PACKED:
        raise ValueError(f"{name} is packed; unpack it, and name the folder")
    if suffix not in readable_suffixes(kind):
        raise ValueError(
            f"{name} is no data set of {_NOUNS[kind]}: a file with the suffix {suffix or 'none'} is not read. Name a "
            f"folder, a file ({_CONVERTED[kind]}, ...), a file of data ({', '.join(sorted(_DATA))}), or a list "
            "of files (.csv, .jsonl) with a column file_name"
        )
    return _files_of(kind, name, path.parent, [path.name])


def _find_in_folder(kind: str, name: str, folder: Path) -> LocalFiles | None:
    found = _search(kind, folder)
    if not found.files and not found.data:
        _refuse_without_files(kind, name, found)
        return None
    if not found.files or _is_data_set(kind, folder, found):
        return None
    # Images in the order of `datasets`, audio in the order of sorted paths.
    found.files.sort(key=None if kind == "image" else lambda each: each.split("/"))
    # For audio, tables are not read: they are often transcripts without a header.
    listed = _listed(folder, sorted(found.tables)) if kind == "image" else None
    unlisted = [] if listed is None else set(found.files).difference(listed[0])
    _tell_what_is_left_out(kind, name, found, len(unlisted))
    return _files_of(kind, name, folder, *(listed or [found.files]))


def _search(kind: str, folder: Path) -> _Found:
    found, readable = _Found(), readable_suffixes(kind)
    for each in names_below(str(folder), "", (), found.closed):
        suffix = os.path.splitext(each)[1].lower()
        if suffix in readable:
            (found.files if _is_utf8(each) else found.misnamed).append(each)
        elif os.path.basename(each) in _TABLES:
            found.tables.append(each)
        elif suffix in _DATA:
            found.data.append(each)
        else:
            found.others[suffix] += 1
    return found


def names_below(folder: str, prefix: str, above: tuple, closed: list[str]) -> Iterator[str]:
    """Files that are not hidden, relative to the folder where the search began; links to folders are followed."""
    try:
        status = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError:
        if not prefix:
            raise
        closed.append(prefix)
        return
    place = (status.st_dev, status.st_ino)
    if place in above:  # a link to a folder above
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_dir(entry):
            yield from names_below(entry.path, f"{prefix}{entry.name}/", (*above, place), closed)
        elif entry.is_symlink() or entry.is_file():
            yield prefix + entry.name


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_utf8(name: str) -> bool:
    try:
        return name.isascii() or bool(name.encode())
    except UnicodeEncodeError:  # Python reads bytes that are not UTF-8 as lone surrogates
        return False


def _refuse_without_files(kind: str, name: str, found: _Found) -> None:
    """Raise a ValueError unless `datasets` may find rows in a folder that has no files of the kind."""
    if found.misnamed:
        raise ValueError(f"{name}: no file name is UTF-8, e.g. {found.misnamed[0]!r}; rename the files")
    media = _media_suffixes() | _PACKED
    there = Counter({suffix: count for suffix, count in found.others.items() if suffix in media})
    if not there and (found.tables or found.others.keys() - {""}):
        return
    there |= Counter({"": found.others[""]})
    if not there:
        raise ValueError(f"{name} holds no file; name a folder of {_NOUNS[kind]}")
    raise ValueError(
        f"{name} holds no {_NOUNS[kind]} that can be read here, but only {_counted(there)}; "
        f"{'unpack them, ' if _PACKED & there.keys() else ''}convert {_NOUNS[kind]} to {_CONVERTED[kind]}, or name "
        "another folder"
    )


def _is_data_set(kind: str, folder: Path, found: _Found) -> bool:
    """Whether a folder's data set is in its files of data, such as Parquet, not in its files of the kind."""
    import datasets
    import pyarrow.parquet

    parquet = sorted(each for each in found.data if each.lower().endswith(".parquet"))
    if parquet:
        schema = pyarrow.parquet.read_schema(folder / parquet[0])
        features = datasets.Features.from_arrow_schema(schema).values()
        if any(isinstance(each, datasets.Image | datasets.Audio) for each in features):
            return True
    return len(found.data) - len(parquet) >= len(found.files)


def _tell_what_is_left_out(kind: str, name: str, found: _Found, unlisted: int) -> None:
    unreadable = Counter({each: n for each, n in found.others.items() if each in _UNREADABLE[kind]})
    data = Counter(os.path.splitext(each)[1].lower() for each in found.data)
    data.update({each: n for each, n in found.others.items() if each in _PACKED})
    parts = []
    if unreadable:
        parts.append(f"{_counted(unreadable)}, which cannot be read here (convert them to {_CONVERTED[kind]})")
    if found.others[""]:
        parts.append(f"{found.others['']} without a suffix (give them one if they are {_NOUNS[kind]})")
    if data:
        parts.append(f"{_counted(data)} (unpack them, or move them to a folder of their own)")
    if found.closed:
        parts.append(f"the folders {_some(found.closed)}, which may not be opened")
    if found.misnamed:
        parts.append(f"{_some([ascii(each) for each in found.misnamed])}, whose names are not UTF-8 (rename them)")
    if unlisted:
        parts.append(f"{unlisted} {_NOUNS[kind]} that {_some(sorted(found.tables))} does not list")
    if parts:
        tell(f"{name}: left out are {'; '.join(parts)}. {len(found.files)} {_NOUNS[kind]} are found")


def _counted(suffixes: Counter) -> str:
    return ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in suffixes.most_common())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _listed(folder: Path, tables: Sequence[str], *, anywhere: bool = False):
    """The files that tables name, relative to the folder, and the joined tables; None if no table has a file_name.

    Args:
        anywhere: files may lie outside of a table's folder.
    """
    names: list[str] = []
    read = []
    for table in tables:
        content = _read_table(folder / table)
        if "file_name" not in content.column_names:
            if not anywhere:
                tell(f"{folder / table} has no column file_name, so it is not read")
            continue
        if not content.num_rows and anywhere:
            raise ValueError(f"{folder / table} has a column file_name, but no row; add one for each file")
        if not content.num_rows:
            tell(f"{folder / table} has no row, so it is not read")
            continue
        for row, each in enumerate(content["file_name"].to_pylist(), 1):
            if not isinstance(each, str) or not each.strip():
                raise ValueError(f"{folder / table} names no file in row {row} ({each!r}); name one in each row")
            relative = _relative(folder, os.path.dirname(table), each, keep_absolute=anywhere)
            outside = os.path.isabs(relative) or relative.split("/")[0] == ".."
            if outside and not anywhere:
                raise ValueError(f"{folder / table} names a file {each!r}; name files that lie below its folder")
            names.append(relative)
        read.append(content)
    if not read:
        return None
    return names, _joined(folder, tables, read)


def _relative(folder: Path, beside: str, file_name: str, *, keep_absolute: bool) -> str:
    """A file that a table in the folder `beside` names, relative to `folder`; one that lies outside stays absolute."""
    if "\\" in file_name and not (folder / beside / file_name).exists():  # as Windows writes paths
        file_name = file_name.replace("\\", "/")
    name = os.path.normpath(os.path.join(beside, file_name))
    if os.path.isabs(name) and not keep_absolute:
        for top in (os.path.abspath(folder), os.path.realpath(folder)):
            if name.startswith(os.path.join(top, "")):
                return os.path.relpath(name, top)
    return name


def _joined(folder: Path, tables: Sequence[str], read: list):
    """The tables as one. Types that were guessed from a table's values may differ."""
    import pyarrow

    types: dict[str, list] = {}
    for each in read:
        for column in each.schema:
            types.setdefault(column.name, []).append(column.type)
    # string and large_string are not different.
    differing = {name for name, found in types.items() if len({str(each).removeprefix("large_") for each in found}) > 1}
    try:
        return pyarrow.concat_tables([_guessed_anew(each, differing) for each in read], promote_options="permissive")
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        columns = [f"{name} ({' and '.join(dict.fromkeys(map(str, types[name])))})" for name in sorted(differing)]
        raise ValueError(
            f"{_some(tables)} of {folder} have columns of different types: {', '.join(columns)}; make them alike"
        ) from error


def _guessed_anew(table, columns):
    """The table, in which those of some columns that are empty have no type; CSV readers take these for numbers."""
    import pyarrow

    for place, name in enumerate(table.column_names):
        if name in columns and table[name].null_count == len(table):
            table = table.set_column(place, name, pyarrow.nulls(len(table)))
    return table


def _read_table(path: Path):
    import pandas
    import pyarrow.json
    import pyarrow.parquet

    try:
        if path.suffix.lower() == ".parquet":
            return pyarrow.parquet.read_table(path)
        if path.suffix.lower() == ".jsonl":
            whole = pyarrow.json.ReadOptions(block_size=max(1, path.stat().st_size))  # one block, so that no row is cut
            return pyarrow.json.read_json(path, read_options=whole)
        # As texts, since names such as 001 are not numbers.
        content = pandas.read_csv(path, dtype={"file_name": str})
        return pyarrow.Table.from_pandas(content, preserve_index=False)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error


def _files_of(kind: str, name: str, root: Path, names: list[str], table: Any = None) -> LocalFiles:
    """The files, with their splits and all columns; `table` has the columns that are known, if any."""
    import datasets
    import pyarrow

    splits, depth = _splits(kind, name, names)
    where = os.path.abspath(root)
    paths = pyarrow.array([os.path.join(where, each) for each in names], pyarrow.string())
    files = pyarrow.StructArray.from_arrays([pyarrow.nulls(len(paths), pyarrow.binary()), paths], ["bytes", "path"])
    file_names = None if kind == "image" else pyarrow.array(names, pyarrow.string())
    features: dict[str, Any] = {}
    if table is not None:
        if kind in table.column_names:
            raise ValueError(f"{name}: a table has a column {kind!r} next to file_name; rename it")
        place = table.column_names.index("file_name")
        features = dict(datasets.Features.from_arrow_schema(table.schema.remove(place)))
        columns = table.replace_schema_metadata(None).set_column(place, kind, files)
        if file_names is not None:
            columns = columns.append_column("file_name", file_names)
    elif file_names is not None:
        columns = pyarrow.table({kind: files, "file_name": file_names})
    else:
        columns = pyarrow.table({kind: files})
        if classes := _classes(names, depth):
            labels = sorted(set(classes))
            features["label"] = datasets.ClassLabel(names=labels)
            numbers = {label: number for number, label in enumerate(labels)}
            columns = columns.append_column(
                "label", pyarrow.array([numbers[each] for each in classes], pyarrow.int64())
            )
    features[kind] = {"image": datasets.Image, "audio": datasets.Audio}[kind](decode=False)
    others = {column: features.get(column, datasets.Value("string")) for column in columns.column_names}
    return LocalFiles(kind, name, names, columns, datasets.Features(others), splits)


def _classes(names: Sequence[str], depth: int) -> list[str]:
    """The folder of each file within a split, if all files are equally deep in several folders; otherwise none."""
    if len({each.count("/") for each in names}) > 1 or names[0].count("/") <= depth:
        return []
    classes = [each.rsplit("/", 2)[-2] for each in names]
    return classes if len(set(classes)) > 1 else []


def _splits(kind: str, name: str, names: Sequence[str]) -> tuple[dict[str, np.ndarray], int]:
    """The rows of each split, and how many folders deep its files lie.

    The folders of splits lie at the top; if there is only a single folder, they lie within that one, and so on.
    """
    start, depth = 0, 0
    while True:
        there = {_first_folder(each, start) for each in names}
        if len(there) > 1 or "" in there or any(map(_split_of, there)):
            break
        start, depth = start + len(there.pop()) + 1, depth + 1
    known = sorted(filter(_split_of, there))
    outside = there.difference(known)
    if not known or (depth and outside):
        _tell_of_no_splits(name, names)
        return {"train": np.arange(len(names))}, 0
    if outside:
        example = next(each for each in names if _first_folder(each, start) in outside)
        raise ValueError(
            f"{name} has {_NOUNS[kind]} both in {', '.join(known)} and outside, such as {example}; move them to train, "
            f"validation, test or elsewhere, or name one folder, {os.path.join(name, known[0])}"
        )
    order = list(dict.fromkeys(_SPLITS.values()))
    numbers = np.array([order.index(_split_of(_first_folder(each, start))) for each in names], dtype=np.uint8)
    return {order[number]: np.flatnonzero(numbers == number) for number in np.unique(numbers)}, depth + 1


def _split_of(folder: str) -> str | None:
    """The split that a folder is named after; a year or another number may follow the name."""
    return _SPLITS.get(folder.rstrip("0123456789"))


def _tell_of_no_splits(name: str, names: Sequence[str]) -> None:
    folders = {os.path.dirname(each) for each in names}
    alike = sorted({part for each in folders for part in each.split("/") if _ALIKE.match(part)})
    if alike:
        tell(
            f"{name}: folders called {_some(alike)} are not used as splits; splits are folders called train, "
            "validation or test at the top. All files are in the split train"
        )


def _first_folder(name: str, start: int) -> str:
    """The first folder of a path from a place in it on; "" for a file that is in none."""
    return name[start : max(start, name.find("/", start))]


def _draw(name: str) -> float:
    """A number in [0, 1) that looks random but is always the same for a name."""
    return int.from_bytes(blake2b(name.encode(), digest_size=6).digest()) / (1 << 48)


def require_validation_share(share: float) -> None:
    """Raise a ValueError unless the share leaves files to train on."""
    require(0 <= share < 1, "validation_share", share, "at least 0 and less than 1")
