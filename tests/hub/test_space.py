"""Pushing the page of `vpvae app` as a Space."""

import ast
import re
from pathlib import Path

import yaml
from saved import image_only

import vpvae_hf
from vpvae_hf.cli.main import main

pytestmark = image_only
ROOT = Path(vpvae_hf.__file__).parent


def pushed(hub):
    return hub.repos["alice/page"].files()


def test_a_space_has_the_page_the_source_and_the_tokenizers(hub, folder, capsys):
    assert main(["push", str(folder), "alice/on_the_hub"]) == 0
    assert main(["push-space", "page", "--tokenizer", str(folder), "alice/on_the_hub"]) == 0
    assert f"pushed to {hub.endpoint}/spaces/alice/page" in capsys.readouterr().out
    files = pushed(hub)
    assert 'TOKENIZERS = ["tokenizers/my_tokenizer", "alice/on_the_hub"]' in files["app.py"].decode()
    ast.parse(files["app.py"])
    for file in folder.iterdir():
        assert files[f"tokenizers/my_tokenizer/{file.name}"] == file.read_bytes()
    for name in ("app/launch.py", "__init__.py", "modalities/image.py"):
        assert files[f"vpvae_hf/{name}"] == (ROOT / name).read_bytes()
    requirements = files["requirements.txt"].decode().splitlines()
    assert {"torch>=2.6", "torchmetrics>=1.8", "soundfile>=0.12", "constriction>=0.5"} <= set(requirements)
    assert not any("vpvae_hf" in line for line in requirements if not line.startswith("#"))
    metadata = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert (metadata["sdk"], metadata["app_file"], metadata["models"]) == ("gradio", "app.py", ["alice/on_the_hub"])
    constraints = Path(__file__).parents[2].joinpath("constraints.txt").read_text()
    assert metadata["sdk_version"] == re.search(r"^gradio==(.*)$", constraints, flags=re.M)[1]


def test_another_push_replaces_it(hub, folder):
    assert main(["push-space", "page", "--tokenizer", str(folder)]) == 0
    other = folder.rename(folder.with_name("other"))
    assert main(["push-space", "page", "--tokenizer", str(other)]) == 0
    assert {name.split("/")[1] for name in pushed(hub) if name.startswith("tokenizers/")} == {"other"}
    assert sum("/commit/" in request for request in hub.requests) == 2


def test_mistakes_push_nothing(hub, folder, unfitted_folder, tmp_path, capsys):
    for tokenizers, message in (
        ([tmp_path / "none"], "there is no file or folder"),
        (["alice/none"], "has no such repository"),
        ([unfitted_folder], "has no fitted codebook"),
        ([folder, folder], "two tokenizers are called my_tokenizer"),
        ([tmp_path], "is no saved tokenizer"),
    ):
        assert main(["push-space", "page", "--tokenizer", *map(str, tokenizers)]) == 1
        assert message in capsys.readouterr().err
    assert main(["push-space", "a/b/c", "--tokenizer", str(folder)]) == 1
    assert "is no repository id" in capsys.readouterr().err
    assert not hub.repos
