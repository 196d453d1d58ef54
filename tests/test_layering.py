"""The layers that pyproject.toml declares hold, and what import-linter cannot see."""

import ast
import dataclasses
import importlib
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import vpvae_hf

SOURCE = Path(vpvae_hf.__file__).parent


def nodes(folder: str = ".") -> list[tuple[Path, ast.AST]]:
    """All nodes of the syntax trees of a folder's files."""
    files = sorted((SOURCE / folder).rglob("*.py"))
    assert files
    return [(file, node) for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]


def test_layers_hold():
    """In a process of its own, since it configures logging."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    finished = subprocess.run(command, cwd=SOURCE.parents[1], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("folder", ["neighbors", "codebook"])
def test_search_and_codebooks_know_no_module(folder):
    """No import of torch.nn, and no torch.nn.Module by its full name."""
    kinds = ast.Import | ast.ImportFrom | ast.Attribute
    statements = [ast.unparse(node) for _, node in nodes(folder) if isinstance(node, kinds)]
    assert [text for text in statements if re.match(r"(from |import )?torch(\.| import (.*, )?)nn\b", text)] == []


def test_every_model_has_a_type():
    """Every parameter called `model`, so that a reader knows what it can do."""
    untyped = [
        f"{file.relative_to(SOURCE)}:{function.lineno}"
        for file, function in nodes()
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
        if argument.arg == "model" and argument.annotation is None
    ]
    assert untyped == []


def test_the_trainer_uses_only_settings_that_its_config_declares():
    """For `config.a.b` in the class, the type of the constructor's `config` has a, and the type of a has b."""
    ((file, tree),) = [
        (file, node) for file, node in nodes("training") if isinstance(node, ast.ClassDef) and node.name == "Trainer"
    ]
    trainer = importlib.import_module(f"vpvae_hf.training.{file.stem}").Trainer
    config = typing.get_type_hints(trainer.__init__)["config"]
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    paths = [match[1].split(".") for text in used if (match := re.fullmatch(r"(?:self\._?)?config\.([\w.]+)", text))]
    assert len(paths) > 5
    assert [path for path in paths if not declared(config, path)] == []


def declared(kind: type, path: list[str]) -> bool:
    """Whether a dataclass has a field, method or property of that name, and the field's type the next one."""
    first, *rest = path
    fields = {field.name for field in dataclasses.fields(kind)}
    if first not in fields:
        return hasattr(kind, first)
    field_type = typing.get_type_hints(kind)[first]
    return not rest or not dataclasses.is_dataclass(field_type) or declared(field_type, rest)
