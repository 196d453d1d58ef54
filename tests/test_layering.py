"""The layers that pyproject.toml declares hold, and what import-linter cannot see."""

import ast
import re
import subprocess
import sys
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
