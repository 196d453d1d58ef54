"""`vpvae encode`, `decode` and `reconstruct`: turn a person's own pictures and sounds into files of codes, and back."""

import argparse
import contextlib
import glob
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from vpvae_hf.data.code_file import read_header
from vpvae_hf.data.entropy_coding import range_coder
from vpvae_hf.data.folders import names_below, tell
from vpvae_hf.files import require_folder, write_atomically
from vpvae_hf.modalities import MODALITIES, Execution, Modality, load_for_tokenizing
from vpvae_hf.modalities.code_files import (
    CodeFile,
    code_bits,
    counted_parts,
    decode_code_file,
    measured,
    model_device,
    read_code_file,
    write_code_file,
)
from vpvae_hf.models import Tokenizer
from vpvae_hf.progress import progress_bar
from vpvae_hf.unreadable import UnreadableFileError

SUFFIX = ".safetensors"
_DECODED, _RECONSTRUCTED = ".decoded", ".reconstruction"
# The tokenizers that come with the package, by modality.
_BUNDLED = {"image": "image", "audio": "speech"}
_SIGNALS, _CODES = "pictures or sounds", "files of codes"


@dataclass(frozen=True)
class _Job:
    """A file to read, a signal or codes, and the files to write; `kind` is the name of the modality."""

    file: Path
    outputs: tuple[Path, ...]
    kind: str

    @property
    def output(self) -> Path:
        return self.outputs[0]


def encode(options: argparse.Namespace) -> None:
    """Write a file of codes for each picture and sound."""
    if options.packing == "entropy":
        range_coder()  # if it is missing, this raises an error before anything is encoded
    jobs = _jobs(options, _SIGNALS, _kind_of, lambda _: (SUFFIX,))
    tokenizers = _Tokenizers(options)
    tokenizers.check(jobs)

    def run(job: _Job) -> str:
        modality, model, name = tokenizers.of(job)
        _, size, codes = _encoded(job, modality, model, options.refine_steps)
        made_by = {"kind": job.kind, "name": name, "revision": options.revision, "refine_steps": options.refine_steps}
        stored = write_code_file(job.output, codes[0], model, size, **made_by, packing=options.packing)
        count = model.quantize.codebook_size
        words, rate = modality.described(size, code_bits(codes, count))
        sizes = f"{stored:,} bytes of codes, {job.output.stat().st_size:,} with the header"
        return f"{words} in {codes.numel():,} codes of {count}, {rate}; {sizes}: {job.output}"

    _run(jobs, run, "Encoding")


def decode(options: argparse.Namespace) -> None:
    """Write the picture or the sound of each file of codes."""
    jobs = _jobs(options, _CODES, _kind_of_codes, lambda kind: MODALITIES[kind].written_suffixes, _DECODED)
    tokenizers = _Tokenizers(options)

    def run(job: _Job) -> str:
        found = read_code_file(job.file)
        modality, model, name = tokenizers.of(job, found)
        with _parts(modality, model, found.size, "Decoding"):
            decoded = decode_code_file(job.file, found, model, name)
        modality.write_file(job.output, decoded, model)
        return f"{found.words}: {job.output}"

    _run(jobs, run, "Decoding")


def reconstruct(options: argparse.Namespace) -> None:
    """For each picture or sound, write a picture that compares it with its reconstruction; also write decoded sound."""
    jobs = _jobs(options, _SIGNALS, _kind_of, lambda _: (".png",), _RECONSTRUCTED, _sound_suffix)
    tokenizers = _Tokenizers(options)
    tokenizers.check(jobs)

    def run(job: _Job) -> str:
        modality, model, _ = tokenizers.of(job)
        signal, size, codes = _encoded(job, modality, model, options.refine_steps)
        with _parts(modality, model, size, "Decoding"):
            decoded = modality.cut(model.detokenize(codes), size).cpu()
        original = modality.cut(signal, size)
        with write_atomically(job.output) as aside:
            Image.fromarray(modality.compared(original, decoded, codes, model)).save(aside, format="png")
        for sound in job.outputs[1:]:
            modality.write_file(sound, decoded, model)
        described = modality.described(size, code_bits(codes, model.quantize.codebook_size))
        measured = _measured(modality, model, decoded, original)
        return f"{', '.join([*described, *measured])}: {', '.join(map(str, job.outputs))}"

    _run(jobs, run, "Reconstructing")


class _Tokenizers:
    """The tokenizers that are needed, each loaded once."""

    def __init__(self, options: argparse.Namespace):
        self._options, self._loaded = options, {}

    def check(self, jobs: list[_Job]) -> None:
        """Raise a ValueError before any job is done, if the tokenizer does not fit the modality of all jobs."""
        for job in jobs:
            self.of(job)

    def of(self, job: _Job, codes: CodeFile | None = None) -> tuple[Modality, Tokenizer, str]:
        """A job's modality, the model, and the model's name, which a file of codes may state."""
        name, revision = self._options.tokenizer, self._options.revision
        if is_told := name is None and codes is not None:
            name, revision = codes.tokenizer, revision or codes.revision
        name = name or _BUNDLED[job.kind]
        modality, key = MODALITIES[job.kind], (name, revision)
        if key not in self._loaded:
            execution = Execution(device=self._options.device)
            size = getattr(self._options, "codebook_size", None)
            try:
                self._loaded[key] = load_for_tokenizing(name, revision, execution, size)
            except (OSError, ValueError) as error:
                if not is_told:
                    raise
                what = f"{job.file} was made with {name}; if that tokenizer is elsewhere now, name it with --tokenizer"
                raise ValueError(f"{error}. {what}") from error
            modality.limit_memory(self._loaded[key])
        model = self._loaded[key]
        if not isinstance(model, modality.model_class):
            raise ValueError(
                f"{name} holds {type(model).__name__}, a tokenizer of {model.hub_entry.items}; name a tokenizer of "
                f"{modality.items} with --tokenizer, or leave out {job.file}"
            )
        return modality, model, str(name)


def _encoded(
    job: _Job, modality: Modality, model: Tokenizer, refine_steps: int
) -> tuple[Tensor, dict[str, int], Tensor]:
    """The padded signal [1, ...] on the CPU, its size without padding, and its codes [1, *grid]."""
    signal, size = modality.read_file(job.file, model)
    with _parts(modality, model, size, "Encoding", refine_steps):
        codes = model.tokenize(signal.to(model_device(model)), refine_steps=refine_steps)
    return signal, size, codes


def _measured(modality: Modality, model: Tokenizer, decoded: Tensor, original: Tensor) -> Iterator[str]:
    """The modality's metrics in words, or why they are not measured."""
    try:
        yield from (" ".join(each) for each in measured(modality, model, decoded, original).items())
    except (ImportError, ValueError) as error:  # packages are missing, or the signal is too small
        yield f"not measured ({error})"


def _run(jobs: list[_Job], run: Callable[[_Job], str], title: str) -> None:
    """Do all jobs and print a line for each. A file that cannot be read does not stop the others."""
    started, failed = time.monotonic(), []
    with progress_bar(total=len(jobs), desc=title, unit="file", shown=len(jobs) > 1) as bar:
        for job in jobs:
            try:
                line = f"{job.file}: {run(job)}"
            except UnreadableFileError as error:
                if len(jobs) == 1:
                    raise
                failed.append(str(error))
                line = f"skipped {error}"
            bar.write(line)
            bar.update()
    print(f"{len(jobs) - len(failed)} of {len(jobs)} files in {time.monotonic() - started:.1f} s")
    if failed:
        raise ValueError(f"{len(failed)} of {len(jobs)} files could not be read, the first: {failed[0]}")


def _jobs(
    options: argparse.Namespace,
    wanted: str,
    kind_of: Callable[[Path], str | None],
    suffixes_of: Callable[[str], tuple[str, ...]],
    middle: str = "",
    further_of: Callable[[str], tuple[str, ...]] = lambda _: (),
) -> list[_Job]:
    """The files that the arguments name, each with its outputs. Raises an error if an output cannot be written.

    Args:
        wanted: what messages call the files that the command takes.
        kind_of: gives the name of a file's modality, or None for other files, which a folder may also hold.
        suffixes_of: gives the suffixes that an output of that kind may have, the usual one first.
        middle: comes before the suffix in the names of outputs that lie next to their files.
        further_of: gives the suffixes of further files that are written next to an output of that kind.
    """
    output, jobs = options.output, []
    is_file = output is not None and bool(output.suffix) and not output.is_dir()
    found = [each for given in options.files for each in _files_of(given, wanted, kind_of, output)]
    if output is not None:
        require_folder(output.parent if is_file else output)
    for file, place in found:
        kind = kind_of(file)
        if kind is None:
            raise ValueError(f"{file} is of a type that this command does not read; name {wanted}, or folders of them")
        suffixes = suffixes_of(kind)
        if output is None:
            path = file.with_suffix(f"{middle}{suffixes[0]}")
        elif is_file:
            folder = "a folder, which must exist if its name has a dot"
            if len(found) > 1:
                raise ValueError(f"{output} names one file, but {len(found)} would be written; name {folder}")
            if output.suffix.lower() not in suffixes:
                raise ValueError(f"{output} must end in {' or '.join(suffixes)}, or name {folder}")
            path = output
        else:
            path = output / place.with_suffix(suffixes[0])
        jobs.append(_Job(file, (path, *map(path.with_suffix, further_of(kind))), kind))
    jobs = list(dict.fromkeys(jobs))  # a file may be named twice, alone and by its folder
    outputs = [path for job in jobs for path in job.outputs]
    twice = [path for path, count in Counter(outputs).items() if count > 1]
    if twice:
        rivals = " and ".join(str(job.file) for job in jobs if twice[0] in job.outputs)
        raise ValueError(f"{twice[0]} would be written for {rivals}; rename one, or do one at a time, with --output")
    read = {job.file.resolve() for job in jobs}
    if replaced := [path for path in outputs if path.resolve() in read]:
        raise ValueError(f"{replaced[0]} would overwrite a file that is read; name another place with --output")
    existing = [path for path in outputs if path.exists()]
    if existing and not options.overwrite:
        raise FileExistsError(f"{existing[0]} exists; use --overwrite, or another place with --output")
    return jobs


def _files_of(
    given: str, wanted: str, kind_of: Callable[[Path], str | None], output: Path | None
) -> list[tuple[Path, Path]]:
    """The files that a path or a pattern names, each with its path relative to the folder that was given.

    Folders and patterns leave out files of other types. Folders also leave out signals that these commands wrote.
    """
    path = Path(os.path.expanduser(given))
    if path.is_dir():
        closed, folder, made = [], path.resolve(), (output or path).resolve()
        places = sorted(map(Path, names_below(str(path), "", (), closed)))
        if closed:
            tell(f"{given}: {len(closed)} folders cannot be opened and are left out, the first: {closed[0]}")
        within = made if folder in made.parents else None
        written = {place for place in places if _is_made(place) or within in (folder / place).parents}
        places = [place for place in places if place.suffix.lower() == SUFFIX or place not in written]
        files = [(path / place, place) for place in places if kind_of(path / place) is not None]
        missing = f"{given} holds no {wanted} that can be read here"
    elif path.exists():
        return [(path, Path(path.name))]
    else:
        found = map(Path, sorted(glob.glob(str(path), recursive=True)))
        files = [(file, Path(file.name)) for file in found if file.is_file() and kind_of(file) is not None]
        missing = f"{given} matches no {wanted}" if glob.has_magic(given) else f"{given} does not exist"
    if not files:
        raise FileNotFoundError(f"{missing}; name {wanted}, folders of them, or patterns")
    return files


def _is_made(place: Path) -> bool:
    """Whether a file has a name that these commands give to an output next to its input."""
    return place.stem.endswith((_DECODED, _RECONSTRUCTED))


def _kind_of(file: Path) -> str | None:
    suffix = file.suffix.lower()
    return next((kind for kind in MODALITIES if suffix in MODALITIES[kind].read_suffixes()), None)


def _sound_suffix(kind: str) -> tuple[str, ...]:
    """The suffix of the decoded sound, which is written next to the picture of a sound."""
    suffix = MODALITIES[kind].written_suffixes[0]
    return () if suffix == ".png" else (suffix,)


def _kind_of_codes(file: Path) -> str | None:
    header = read_header(file) if file.suffix.lower() == SUFFIX else None
    if header is None:
        return None
    if (kind := header.get("kind")) not in MODALITIES:
        raise ValueError(f"{file} holds codes of {kind or 'no kind'}; known: {', '.join(MODALITIES)}")
    return kind


@contextlib.contextmanager
def _parts(
    modality: Modality, model: Tokenizer, size: Mapping[str, int], title: str, refine_steps: int = 0
) -> Iterator[None]:
    """A context with a progress bar over a large signal's parts; each counts several times if codes are refined."""
    with contextlib.ExitStack() as stack:
        total = stack.enter_context(counted_parts(modality, model, size, lambda: bar.update(), refine_steps))
        bar = progress_bar(total=total, desc=title, unit="part", shown=total > 1, leave=False)
        stack.enter_context(bar)
        yield
