"""Hooks of mkdocs: tables made from the code, pages from outside docs/, and formulas as MathML.

A line `<!-- fill: NAME -->` in a page is replaced, with the line after it, by what `FILLED[NAME]` returns.
"""

import argparse
import dataclasses
import inspect
import os
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, Literal

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import vpvae_hf
from vpvae_hf.cli.parser import build_parser
from vpvae_hf.cli.train import recipes_of
from vpvae_hf.losses import audio_losses, image_losses
from vpvae_hf.metrics import METRIC_LABELS
from vpvae_hf.modalities import MODALITIES
from vpvae_hf.neighbors import BACKENDS
from vpvae_hf.quantizers import QUANTIZERS
from vpvae_hf.quantizers.fsp import ACTIVATIONS
from vpvae_hf.recipes.generation.train_ar import AutoregressiveConfig
from vpvae_hf.recipes.generation.train_diffusion import DiffusionConfig
from vpvae_hf.recipes.generation.train_masked import MaskedConfig

ROOT = Path(__file__).parents[1]
# Files outside docs/ that are pages too, each with the path of its page.
ELSEWHERE = {
    "recipes/README.md": "recipes.md",
    "CONTRIBUTING.md": "contributing/rules.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
    "benchmarks/results/README.md": "measured/index.md",
}
_MEASURED = "benchmarks/results/"
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")
_PLACEHOLDER = re.compile(r"^<!-- fill: (\S+) -->\n.*$", re.MULTILINE)
_CODE = re.compile(r"^(`{3,}).*?^\1\s*$|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.markdown_extensions.append(_Formulas())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/, and all tables and curves in benchmarks/results."""
    for source, place in _pages_elsewhere().items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    filled = _PLACEHOLDER.sub(lambda found: FILLED[found[1]](), markdown)
    here = page.file.src_uri
    source = next((of for of, place in _pages_elsewhere().items() if place == here), f"docs/{here}")
    parts, end = [], 0
    for code in _CODE.finditer(filled):  # code has no links
        parts += [_with_links(filled[end : code.start()], source, here), code[0]]
        end = code.end()
    return "".join([*parts, _with_links(filled[end:], source, here)])


def _pages_elsewhere() -> dict[str, str]:
    tables = [path for suffix in ("md", "png") for path in (ROOT / _MEASURED).glob(f"**/*.{suffix}")]
    measured = {path.relative_to(ROOT).as_posix(): path.relative_to(ROOT / _MEASURED).as_posix() for path in tables}
    return {source: f"measured/{place}" for source, place in measured.items()} | ELSEWHERE


def _with_links(text: str, source: str, here: str) -> str:
    """The text, in which links to files point to their pages, or become paths if a file has no page."""
    pages = _pages_elsewhere()

    def link(found: re.Match) -> str:
        label, target, anchor = found[1], found[2], found[3] or ""
        if ":" in target:
            return found[0]
        file = os.path.normpath(PurePosixPath(source).parent / target)
        inside = file.startswith("docs/") and (ROOT / file).is_file()
        place = file.removeprefix("docs/") if inside else pages.get(file) or pages.get(f"{file}/README.md")
        if place is not None:
            return f"[{label}]({os.path.relpath(place, PurePosixPath(here).parent)}{anchor})"
        if not (ROOT / file).exists():
            return found[0]  # mkdocs warns of it
        named = label.strip("`") == file or label.strip("`/") == file
        return f"`{file}`" if named else f"{label} (`{file}`)"

    return _LINK.sub(link, text)


class _Formulas(Extension):
    """Formulas: `$...$` within a line, `$$...$$` as a block."""

    def extendMarkdown(self, md: Markdown) -> None:
        # After code, and before the patterns that give backslashes and underscores a meaning.
        md.inlinePatterns.register(_Formula(r"\$\$(.+?)\$\$", md, "block"), "display_formula", 186)
        md.inlinePatterns.register(_Formula(r"\$([^$\n]+?)\$", md, "inline"), "formula", 185)


class _Formula(InlineProcessor):
    def __init__(self, pattern: str, md: Markdown, display: str):
        super().__init__(pattern, md)
        self._display = display

    def handleMatch(self, m: re.Match, data: str) -> tuple[str, int, int]:
        return self.md.htmlStash.store(convert(m[1].strip(), display=self._display)), m.start(0), m.end(0)


def commands() -> str:
    """Every command of `vpvae`, its usage and its options."""
    actions = build_parser()._actions
    parsers = next(action for action in actions if isinstance(action, argparse._SubParsersAction))
    summaries = {choice.dest: choice.help for choice in parsers._choices_actions}
    sections = []
    for name, parser in parsers.choices.items():
        if parser.prog.rpartition(" ")[2] != name:
            continue  # an alias
        usage = parser.format_usage().strip().replace("\n" + " " * len("usage: "), "\n").removeprefix("usage: ")
        rows = [
            (_option(action), parser._get_formatter()._expand_help(action))
            for action in parser._actions
            if not isinstance(action, argparse._HelpAction)
        ]
        text = f"## vpvae {name}\n\n{parser.description or summaries[name]}\n\n```text\n{usage}\n```"
        sections.append(f"{text}\n\n{_table(('option', 'meaning'), rows)}")
    return "\n\n".join(sections)


def _option(action: argparse.Action) -> str:
    value = action.metavar or action.dest.upper()
    if action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return f"`{value}`"
    return f"`{', '.join(action.option_strings)}`" if action.nargs == 0 else f"`{action.option_strings[0]} {value}`"


def training_settings() -> str:
    """Every setting of `vpvae train`, for each modality."""
    sections = []
    for name in MODALITIES:
        recipes = ", ".join(f"`{recipe}`" for recipe in recipes_of(name))
        sections.append(f"## vpvae train {name}\n\nNames that `--config` takes, in addition to paths: {recipes}.")
        sections.append(_settings_table(MODALITIES[name].config_class))
    return "\n\n".join(sections)


def generation_settings() -> str:
    """Every setting of the recipes in recipes/generation."""
    sections = []
    for config_class in (AutoregressiveConfig, MaskedConfig, DiffusionConfig):
        sections.append(f"## {config_class.__module__.rpartition('.')[2]}.py\n\n{config_class.__doc__}")
        sections.append(_settings_table(config_class))
    return "\n\n".join(sections)


def _settings_table(config_class: type) -> str:
    found = _leaves(config_class, "")
    rows = [(f"`{key}`", _type(kind), _value(default), meaning) for key, kind, default, meaning in found]
    return _table(("setting", "values", "default", "meaning"), rows)


def _leaves(config_class: type, prefix: str) -> Iterator[tuple[str, Any, Any, str]]:
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(field.type):
            yield from _leaves(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field.type, _default(field), field.metadata["help"]


def quantizer_settings() -> str:
    """Every kind of quantizer and its settings, as its class documents them."""
    sections = []
    for kind, (config_class, _) in QUANTIZERS.items():
        types, meanings = typing.get_type_hints(config_class), _documented(config_class)
        rows = [
            (f"`{field.name}`", _type(types[field.name]), _value(_default(field)), meanings[field.name])
            for field in dataclasses.fields(config_class)
        ]
        paper = config_class.paper and f" [arXiv {config_class.paper}](https://arxiv.org/abs/{config_class.paper})."
        sections.append(f"## {kind}\n\n{config_class.description}.{paper or ''}")
        sections.append(_table(("field", "values", "default", "meaning"), rows))
    return "\n\n".join(sections)


def _documented(config_class: type) -> dict[str, str]:
    """The meaning of every attribute, from the docstrings of a class and of its bases."""
    found: dict[str, str] = {}
    for each in reversed(config_class.__mro__):
        _, _, attributes = (inspect.cleandoc(each.__doc__ or "")).partition("Attributes:\n")
        for names, meaning in re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {5,}.*)*)", attributes, re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found


def quantizers() -> str:
    """The kinds of quantizers, a row each."""
    rows = []
    for kind, (config_class, _) in QUANTIZERS.items():
        paper = config_class.paper and f"[{config_class.paper}](https://arxiv.org/abs/{config_class.paper})"
        needed, fits = "yes" if config_class.needs_fitting else "no", config_class.fits or ""
        rows.append((f"`{kind}`", config_class.description, paper or "", needed, fits))
    return _table(("kind", "method", "arXiv", "needs a fit", "what can be fitted"), rows)


def losses() -> str:
    rows = [("image", _names(image_losses())), ("audio", _names(audio_losses()))]
    return _table(("modality", "losses"), rows)


def metrics() -> str:
    rows = [(f"`{name}`", label.label, label.unit) for name, label in METRIC_LABELS.items()]
    return _table(("key", "label", "unit"), rows)


def searches() -> str:
    return f"`auto`, {_names(BACKENDS)}"


def activations() -> str:
    rows = [(f"`{name}`", "none" if var is None else f"{var:.4f}") for name, (_, var) in ACTIVATIONS.items()]
    return _table(("activation", "target variance of eq. (14)"), rows)


def public_names() -> str:
    """Directives of mkdocstrings for the package's public names."""
    ours = (getattr(vpvae_hf, name) for name, module in vpvae_hf._SOURCES.items() if module.startswith("."))
    return _directives(f"{each.__module__}.{each.__qualname__}" for each in ours)


def base_classes() -> str:
    """Directives for what a new quantizer, modality or loop builds on, with the modules to import it from."""
    names = {
        "vpvae_hf.models.tokenizer": ["Tokenizer"],
        "vpvae_hf.quantizers": ["Quantizer", "CodebookQuantizer", "QuantizerConfig", "QuantizerOutput"],
        "vpvae_hf.modalities": ["Modality"],
        "vpvae_hf.codebook": ["fit_kmeans"],
        "vpvae_hf.neighbors": ["build_index"],
        "vpvae_hf.metrics": ["load_metric"],
    }
    paths = (f"{module}.{name}" for module, of in names.items() for name in of)
    return _directives(paths, show_root_full_path=True)


def _directives(paths: typing.Iterable[str], show_root_full_path: bool = False) -> str:
    options = f"    options:\n      show_root_full_path: {str(show_root_full_path).lower()}"
    return "\n\n".join(f"::: {path}\n{options}" for path in paths)


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def _type(given: Any) -> str:
    """A type in words that a user of YAML knows."""
    origin, arguments = typing.get_origin(given), typing.get_args(given)
    if origin in (typing.Union, UnionType):
        return " or ".join(_type(each) for each in arguments)
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    words = {int: "integer", float: "number", str: "text", bool: "true, false", type(None): "null", Any: "any"}
    words |= {dict: "mapping", list: "list", tuple: "list"}
    return words.get(origin or given, str(given))


def _value(value: Any) -> str:
    words = {True: "true", False: "false", None: "null"}
    if isinstance(value, bool | None):
        return f"`{words[value]}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _names(names: typing.Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: tuple[str, ...], rows: typing.Iterable[tuple[str, ...]]) -> str:
    """A table whose cells carry the name of their column: tables.css stacks them on a narrow screen."""

    def labelled(column: str, cell: str) -> str:
        return cell.replace("|", "\\|") + f' {{: data-column="{column}" }}' * bool(cell and column)

    cells = [tuple(map(labelled, ("", *head[1:]), row)) for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ("---",) * len(head), *cells))


FILLED: dict[str, Callable[[], str]] = {
    make.__name__: make
    for make in (
        *(activations, base_classes, commands, generation_settings, losses, metrics, public_names),
        *(quantizer_settings, quantizers, searches, training_settings),
    )
}
