"""`vpvae encode`, `decode` and `reconstruct`: a person's own pictures and sounds to files of codes, and back."""

import argparse
import glob
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vpvae_hf.data import read_codes, write_codes
from vpvae_hf.files import write_atomically
from vpvae_hf.metric_labels import metric_label
from vpvae_hf.modalities import MODALITIES, Execution, Modality, load_for_tokenizing
from vpvae_hf.models import Tokenizer
from vpvae_hf.progress import progress_bar
from vpvae_hf.unreadable import UnreadableFileError

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class _Job:
    """A file to read, of a signal or of codes, and one to write; `kind` is the name of the modality."""

    file: Path
    output: Path
    kind: str


def encode(options: argparse.Namespace) -> None:
    """Write a file of codes for each picture and sound."""
    jobs = _jobs(options, _kind_of, lambda _: (SUFFIX,))
    tokenizers = _Tokenizers(options)

    def run(job: _Job) -> str:
        modality, model, name = tokenizers.of(job.kind)
        _, size, codes = _encoded(job, modality, model, options.refine_steps)
        count = model.quantize.codebook_size
        header = {
            "kind": job.kind,
            "tokenizer": name,
            "revision": options.revision or "",
            "fingerprint": json.dumps(model.fingerprint()),
            "refine_steps": str(options.refine_steps),
            "size": json.dumps(size),
        }
        stored = write_codes(job.output, codes[0], header, codebook_size=count, pack=options.pack)
        words, rate = modality.described(size, _bits(codes, count))
        grid = " x ".join(map(str, codes.shape[1:]))
        return f"{words} in {grid} codes of {count}, {rate}; {stored:,} bytes of codes: {job.output}"

    _run(jobs, run, "Encoding")


def decode(options: argparse.Namespace) -> None:
    """Write the picture or the sound of each file of codes."""
    jobs = _jobs(options, _kind_of_codes, lambda kind: MODALITIES[kind].written_suffixes, "decoded")
    tokenizers = _Tokenizers(options)

    def run(job: _Job) -> str:
        codes, header = read_codes(job.file)
        size_of_codebook = int(header["codebook_size"])
        modality, model, name = tokenizers.of(job.kind, header)
        if size_of_codebook in model.codebook_sizes:
            model.select_codebook(size_of_codebook)
        try:
            model.check_fingerprint(json.loads(header["fingerprint"]), f"{job.file} was written")
        except ValueError as error:
            raise ValueError(f"{name}: {error}; {job.file} was made with {header['tokenizer']}") from None
        size = json.loads(header["size"])
        with _parts(modality, model, size, "Decoding"):
            decoded = modality.cut(model.detokenize(codes[None].to(_device(model))), size)
        modality.write_file(job.output, decoded, model)
        return f"{modality.described(size, 1)[0]}: {job.output}"

    _run(jobs, run, "Decoding")


def reconstruct(options: argparse.Namespace) -> None:
    """Write what each picture and sound becomes, and a picture of both."""
    jobs = _jobs(options, _kind_of, lambda _: (".png",), "reconstruction")
    tokenizers = _Tokenizers(options)

    def run(job: _Job) -> str:
        modality, model, _ = tokenizers.of(job.kind)
        signal, size, codes = _encoded(job, modality, model, options.refine_steps)
        with _parts(modality, model, size, "Decoding"):
            decoded = modality.cut(model.detokenize(codes), size).cpu()
        original = modality.cut(signal, size)
        with write_atomically(job.output) as aside:
            Image.fromarray(modality.compared(original, decoded, codes, model)).save(aside, format="png")
        written = [job.output]
        if modality.written_suffixes[0] != ".png":  # a sound is to be heard, too
            written.append(job.output.with_suffix(modality.written_suffixes[0]))
            modality.write_file(written[-1], decoded, model)
        measured = ", ".join(_measured(modality, model, decoded, original))
        words, rate = modality.described(size, _bits(codes, model.quantize.codebook_size))
        return f"{words}, {rate}, {measured}: {', '.join(map(str, written))}"

    _run(jobs, run, "Reconstructing")


class _Tokenizers:
    """The tokenizers that are needed, each loaded once."""

    def __init__(self, options: argparse.Namespace):
        self._options, self._loaded = options, {}

    def of(self, kind: str, header: dict[str, str] | None = None) -> tuple[Modality, Tokenizer, str]:
        """The modality of a name, the model, and the model's name, which a file of codes may tell."""
        given, revision = self._options.tokenizer, self._options.revision
        name = given or header["tokenizer"]
        if given is None and header:
            revision = revision or header["revision"] or None
        modality, key = MODALITIES[kind], (name, revision)
        if key not in self._loaded:
            execution = Execution(device=self._options.device)
            size = getattr(self._options, "codebook_size", None)
            self._loaded[key] = load_for_tokenizing(name, revision, execution, size)
            modality.limit_memory(self._loaded[key])
        model = self._loaded[key]
        if not isinstance(model, modality.model_class):
            raise ValueError(
                f"{name} holds {type(model).__name__}, a tokenizer of {model.hub_entry.items}; name one of "
                f"{modality.items} with --tokenizer, or encode other files"
            )
        return modality, model, str(name)


def _encoded(
    job: _Job, modality: Modality, model: Tokenizer, refine_steps: int
) -> tuple[Tensor, dict[str, int], Tensor]:
    """The signal [1, ...] on the CPU, with padding, its size without, and its codes [1, *grid]."""
    signal, size = modality.read_file(job.file, model)
    with _parts(modality, model, size, "Encoding", refine_steps):
        codes = model.tokenize(signal.to(_device(model)), refine_steps=refine_steps)
    return signal, size, codes


def _bits(codes: Tensor, codebook_size: int) -> float:
    return codes.numel() * math.log2(codebook_size)


def _device(model: Tokenizer) -> torch.device:
    return next(model.parameters()).device


def _measured(modality: Modality, model: Tokenizer, decoded: Tensor, original: Tensor) -> Iterator[str]:
    """The modality's metrics that are defined here, in words."""
    try:
        metrics = modality.metric_fn(model)(decoded, original)
    except (ImportError, ValueError):  # packages are missing, or the signal is too small
        return
    for name, value in metrics.items():
        if not math.isnan(value := float(value)):
            yield f"{metric_label(name).label} {metric_label(name).format(value)}"


def _run(jobs: list[_Job], run: Callable[[_Job], str], title: str) -> None:
    """Do all jobs and tell what each gave; a file that cannot be read does not keep the others from being done."""
    started, failed = time.monotonic(), []
    with progress_bar(total=len(jobs), desc=title, unit="file", shown=len(jobs) > 1) as bar:
        for job in jobs:
            try:
                line = f"{job.file}: {run(job)}"
            except UnreadableFileError as error:
                if len(jobs) == 1:
                    raise
                failed.append(str(error))
                line = f"{job.file}: skipped, {error}"
            bar.write(line)
            bar.update()
    print(f"{len(jobs) - len(failed)} of {len(jobs)} in {time.monotonic() - started:.1f} s")
    if failed:
        raise ValueError(f"{len(failed)} of {len(jobs)} files could not be read, the first: {failed[0]}")


def _jobs(
    options: argparse.Namespace,
    kind_of: Callable[[Path], str | None],
    suffixes_of: Callable[[str], tuple[str, ...]],
    middle: str = "",
) -> list[_Job]:
    """What the arguments name, each with its output; an error before anything is done if one cannot be written.

    Args:
        kind_of: the name of a file's modality; None for other files, of which a folder may hold any.
        suffixes_of: those that an output of such a kind may have, the usual one first.
        middle: of the names of outputs that lie beside their files, before the suffix.
    """
    found = [each for given in options.files for each in _files_of(given, kind_of)]
    output, jobs = options.output, []
    for file, place in found:
        kind = kind_of(file)
        if kind is None:
            raise ValueError(f"{file} is of no type that is read here; name pictures, sounds or folders of them")
        suffixes = suffixes_of(kind)
        if output is None:
            path = file.with_suffix(f".{middle}{suffixes[0]}" if middle else suffixes[0])
        elif output.suffix and not output.is_dir():
            if len(found) > 1:
                raise ValueError(f"{output} names a file, but {len(found)} are to be written; name a folder")
            if output.suffix.lower() not in suffixes:
                raise ValueError(f"{output} must end in {' or '.join(suffixes)}, or name a folder")
            path = output
        else:
            path = output / place.with_suffix(suffixes[0])
        jobs.append(_Job(file, path, kind))
    twice = [path for path, count in Counter(job.output for job in jobs).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]} would be written for several files; name fewer of them at once, with --output")
    existing = [job.output for job in jobs if job.output.exists()]
    if existing and not options.overwrite:
        raise FileExistsError(f"{existing[0]} exists; use --overwrite, or another place with --output")
    return jobs


def _files_of(given: str, kind_of: Callable[[Path], str | None]) -> list[tuple[Path, Path]]:
    """The files that a path or a pattern names, each with its place below that folder."""
    path = Path(given).expanduser()
    if path.is_dir():
        inside = [(file, file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]
        seen = [(file, place) for file, place in inside if not any(part.startswith(".") for part in place.parts)]
        files = [(file, place) for file, place in seen if kind_of(file) is not None]
    elif path.exists():
        files = [(path, Path(path.name))]
    else:
        files = [(file, Path(file.name)) for file in map(Path, sorted(glob.glob(str(path), recursive=True)))]
    if not files:
        what = "holds no file that is read here" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{given} {what}; name pictures, sounds, or files of codes, as the command takes them")
    return files


def _kind_of(file: Path) -> str | None:
    suffix = file.suffix.lower()
    return next((kind for kind in MODALITIES if suffix in MODALITIES[kind].read_suffixes()), None)


def _kind_of_codes(file: Path) -> str | None:
    return read_codes(file)[1]["kind"] if file.suffix == SUFFIX else None


@contextmanager
def _parts(
    modality: Modality, model: Tokenizer, size: Mapping[str, int], title: str, refine_steps: int = 0
) -> Iterator[None]:
    """A bar over the parts that a large signal is processed in, each several times if codes are refined."""
    parts, passes = modality.parts(size, model), 1 + (refine_steps + 2 if refine_steps else 0)
    with progress_bar(total=parts * passes, desc=title, unit="part", shown=parts * passes > 1, leave=False) as bar:

        def count(*_) -> None:  # if a hook returned something, that would replace the module's output
            bar.update()

        hooks = [module.register_forward_hook(count) for module in (model.encoder, model.decoder)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
