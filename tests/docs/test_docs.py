"""The site of docs/: it builds without a warning, asks nothing of other servers, and its commands can be typed."""

import argparse
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from vpvae_hf.cli.main import main
from vpvae_hf.cli.parser import build_parser
from vpvae_hf.cli.train import _with_paths, recipes_of
from vpvae_hf.modalities import MODALITIES
from vpvae_hf.training.config import RunConfig, parse_config

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("**/*.md"))
READ = [*PAGES, ROOT / "README.md", ROOT / "examples" / "README.md", ROOT / "recipes" / "README.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site that `make docs` builds."""
    pytest.importorskip("mkdocs", reason="the site needs the extra docs")
    pytest.importorskip("latex2mathml", reason="the site needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 600},
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "WARNING" not in done.stderr
    return folder


def test_it_is_whole(site):
    for page in PAGES:
        assert (site / page.relative_to(ROOT / "docs")).with_suffix(".html").is_file()
    text = "".join(path.read_text("utf-8") for path in site.glob("**/*.html"))
    assert "<!-- fill:" not in text
    assert "fills this in" not in text
    assert not re.search(r"\$\$|\\frac|\\mathrm", re.sub(r"<(pre|code).*?</\1>", "", text, flags=re.DOTALL))
    assert "<math" in (site / "explanation" / "vp.html").read_text("utf-8")
    in_pages = {"tokenize": "commands", "data.shuffle_buffer": "training-settings", "AutoencoderVP": "api"}
    for name, page in in_pages.items():
        assert name in (site / "reference" / f"{page}.html").read_text("utf-8")
    assert not list(site.glob("**/*.py"))


def test_it_fetches_nothing_from_elsewhere(site):
    for page in site.glob("**/*.html"):
        text = page.read_text("utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\" >]+)", text)
        fetched += re.findall(r"<link[^>]* rel=\"?(?:stylesheet|preconnect|icon)\"?[^>]* href=\"?([^\" >]+)", text)
        assert not [address for address in fetched if "//" in address], page
    assert not [file for file in site.glob("**/*.css") if re.search(r"url\([\"']?https?:", file.read_text("utf-8"))]


def printed(language):
    """The blocks in a language on all pages that people read, each with its page."""
    for page in READ:
        for block in re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
            yield page, block


def commands_like(pattern):
    """The printed commands that begin like this, without the beginning."""
    for page, block in printed("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(pattern, line):
                yield pytest.param(re.sub(pattern, "", line, count=1), id=f"{page.stem}: {line[:50]}")


@pytest.mark.parametrize("command", [*commands_like(r"vpvae |accelerate launch .*-m vpvae_hf ")])
def test_printed_commands_are_understood(command, tmp_path, monkeypatch):
    options = build_parser().parse_args(shlex.split(command, comments=True))
    if options.command != "train":
        return
    # The only file of settings that a page prints, at the path that the page names.
    (own,) = [block for _, block in printed("yaml") if block.startswith("# mine.yaml")]
    (tmp_path / "mine.yaml").write_text(own, "utf-8")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    config_class = MODALITIES[options.modality].config_class
    assert parse_config(config_class, [*_with_paths(options.settings, recipes_of(options.modality))]).output_dir


def test_the_readmes_commands_for_own_files_and_data_sets_run(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).resize((64, 64)).save(tmp_path / "photos" / f"{number}.jpg")
    shutil.copytree(tmp_path / "photos", tmp_path / "data")
    shutil.copy(tmp_path / "photos" / "0.jpg", tmp_path / "photograph.jpg")
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text("utf-8").replace("TOKENIZER", "image").replace("NAME", "data")
    commands = re.findall(r"^vpvae ((?:encode|reconstruct|tokenize) .*)$", readme, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        arguments = shlex.split(command, comments=True)
        smaller = {"tokenize": ["--size", "64"]}.get(arguments[0], ["--quiet"])
        assert main([*arguments, *smaller, "--device", "cpu"]) == 0, command
    folders = {"train": "codes", "validation": "codes_validation"}
    rows = [datasets.load_dataset(folder, split=split).num_rows for split, folder in folders.items()]
    assert min(rows) > 0
    assert sum(rows) == len(pixels)


@pytest.mark.parametrize("command", [*commands_like(r"accelerate launch recipes/generation/")])
def test_printed_recipes_of_generation_are_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    script, *arguments = shlex.split(command, comments=True)
    module = importlib.import_module(f"vpvae_hf.recipes.generation.{script.removesuffix('.py')}")
    (config_class,) = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, RunConfig) and each.__module__ == module.__name__
    ]
    assert parse_config(config_class, arguments).output_dir


def test_every_option_is_in_the_table_of_its_command(site):
    text = (site / "reference" / "commands.html").read_text("utf-8")
    commands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    missing = [
        option
        for parser in commands.choices.values()
        for action in parser._actions
        for option in action.option_strings[-1:]
        if option not in text
    ]
    assert not missing


def test_cells_of_made_tables_know_their_column_except_the_first(site):
    """A narrow screen puts them below each other, without the table's head."""
    text = (site / "reference" / "training-settings.html").read_text("utf-8")
    rows = re.findall(r"<tr>\s*<td><code>max_train_steps</code></td>.*?</tr>", text, re.DOTALL)
    columns = [re.findall(r'data-column="?(\w+)', row) for row in rows]
    assert columns == [["values", "default", "meaning"]] * len(MODALITIES)


def test_the_drawing_is_small():
    drawing = ROOT / "docs" / "images" / "idea.svg"
    assert drawing.stat().st_size < 100_000


def test_terms_of_the_glossary_are_in_order_and_there_once():
    text = (ROOT / "docs" / "reference" / "glossary.md").read_text("utf-8")
    terms = re.findall(r"^(\S.*)\n:   ", text, re.MULTILINE)
    letters = [re.sub(r"[^a-z]", "", term.replace("_m", "").lower()) for term in terms]
    assert len({*letters}) == len(letters)
    assert letters == sorted(letters)
