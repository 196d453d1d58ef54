"""The site of docs/: it builds without a warning, asks nothing of other servers, and what it prints can be typed."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vpvae_hf.cli.parser import build_parser
from vpvae_hf.cli.train import _with_paths, recipes_of
from vpvae_hf.modalities import MODALITIES
from vpvae_hf.training.config import parse_config

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("**/*.md"))
OURS = re.compile(r"vpvae |accelerate launch .*-m vpvae_hf ")


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


def printed_commands():
    """The commands of this package in the pages, each with the page."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if OURS.match(line):
                    yield pytest.param(OURS.sub("", line, count=1), id=f"{page.stem}: {line[:50]}")


@pytest.mark.parametrize("command", [*printed_commands()])
def test_printed_commands_are_understood(command):
    options = build_parser().parse_args(shlex.split(command, comments=True))
    if options.command == "train":
        config_class = MODALITIES[options.modality].config_class
        files = [word for word in options.settings if word.endswith(".yaml")]
        assert files in ([], ["mine.yaml"])
        settings = ["small" if word == "mine.yaml" else word for word in options.settings]
        parse_config(config_class, [*_with_paths(settings, recipes_of(options.modality))])


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


def test_the_drawing_is_small():
    drawing = ROOT / "docs" / "images" / "idea.svg"
    assert drawing.stat().st_size < 100_000


def test_terms_of_the_glossary_are_in_order_and_there_once():
    text = (ROOT / "docs" / "reference" / "glossary.md").read_text("utf-8")
    terms = re.findall(r"^(\S.*)\n:   ", text, re.MULTILINE)
    letters = [re.sub(r"[^a-z]", "", term.replace("_m", "").lower()) for term in terms]
    assert len({*letters}) == len(letters)
    assert letters == sorted(letters)
