"""A file of the package imports only from strictly lower layers, or from siblings in its own folder."""

import ast
from pathlib import Path

import pytest

import vpvae_hf

PACKAGE = "vpvae_hf"
SOURCE = Path(vpvae_hf.__file__).parent
# The package itself, `vpvae_hf/__init__.py`, lies above all of them except the command line.
LAYERS = {
    "distributed": 0,
    "settings": 0,
    "metric_labels": 0,
    "files": 0.5,
    "resampling": 0,
    "neighbors": 0,
    "codebook": 1,
    "quantizers": 2,
    "hub": 2.5,
    "models": 3,
    "losses": 3,
    "data": 4,
    "metrics": 4,
    "generation": 4.5,
    "training": 5,
    "comparison": 6,
    PACKAGE: 6.5,
    "cli": 7,
}


def imported_names(file: Path, root: Path) -> set[str]:
    """Absolute names of what a file imports, anywhere in it: a.b for `import a.b` and for `from a import b`."""
    package = [PACKAGE, *file.relative_to(root).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def imported_parts(file: Path, root: Path) -> set[str]:
    """Folders and top-level files of the package that a file imports, and the package's own name for itself."""
    inside = [name.split(".")[1:] for name in imported_names(file, root) if name.split(".")[0] == PACKAGE]
    parts = {path.stem for path in root.iterdir() if path.is_dir() or path.suffix == ".py"}
    return {rest[0] if rest and rest[0] in parts else PACKAGE for rest in inside}


def part_of(file: Path, root: Path) -> str:
    relative = file.relative_to(root)
    if relative.name == "__init__.py" and len(relative.parts) == 1:
        return PACKAGE
    return relative.parts[0].removesuffix(".py")


def forbidden_imports(root: Path) -> list[str]:
    found = []
    for file in sorted(root.rglob("*.py")):
        own = part_of(file, root)
        if own == PACKAGE:
            continue
        for part in sorted(imported_parts(file, root) - {own}):
            if LAYERS[part] >= LAYERS[own]:
                found.append(f"{file.relative_to(root).as_posix()} imports {part}")
    return found


def names_imported_in(folder: str) -> set[str]:
    return {name for file in (SOURCE / folder).rglob("*.py") for name in imported_names(file, SOURCE)}


def test_every_import_goes_down():
    assert forbidden_imports(SOURCE) == []


def test_every_part_has_a_layer():
    parts = {part_of(file, SOURCE) for file in SOURCE.rglob("*.py")}
    assert len(parts) > 5
    assert parts <= LAYERS.keys()


@pytest.mark.parametrize(
    ("file", "line", "caught"),
    [
        ("neighbors/index.py", "from vpvae_hf.codebook import fit_kmeans", "codebook"),
        ("neighbors/index.py", "import vpvae_hf.codebook.kmeans", "codebook"),
        ("neighbors/index.py", "import vpvae_hf.codebook as book", "codebook"),
        ("neighbors/index.py", "from vpvae_hf import codebook", "codebook"),
        ("neighbors/index.py", "from .. import codebook", "codebook"),
        ("neighbors/index.py", "from ..codebook.kmeans import fit_kmeans", "codebook"),
        ("neighbors/deeper/index.py", "from ...codebook import fit_kmeans", "codebook"),
        ("neighbors/index.py", "def late():\n    from vpvae_hf.codebook import fit_kmeans", "codebook"),
        ("distributed.py", "from .neighbors import build_index", "neighbors"),
        ("models/decoder.py", "from vpvae_hf.losses import l1", "losses"),
        ("losses/reconstruction.py", "from vpvae_hf.models import AutoencoderVP", "models"),
        ("training/loop.py", "from vpvae_hf import AutoencoderVP", PACKAGE),
        ("training/loop.py", "import vpvae_hf", PACKAGE),
        ("hub/card.py", "from .. import AutoencoderVP", PACKAGE),
        ("hub/push.py", "from vpvae_hf.models import AutoencoderVP", "models"),
        ("training/loop.py", "from vpvae_hf import codebook, AutoencoderVP", PACKAGE),
    ],
)
def test_a_planted_upward_import_is_caught(tmp_path, file, line, caught):
    _plant(tmp_path, file, line)
    assert forbidden_imports(tmp_path) == [f"{file} imports {caught}"]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("neighbors/index.py", "from .nearest import nearest_point"),
        ("neighbors/index.py", "from . import nearest"),
        ("neighbors/index.py", "from vpvae_hf.neighbors.nearest import nearest_point"),
        ("neighbors/index.py", "import vpvae_hf_other"),
        ("codebook/kmeans.py", "from vpvae_hf.neighbors import nearest_point"),
        ("codebook/kmeans.py", "from ..neighbors import nearest_point"),
        ("cli/reload_check.py", "from vpvae_hf import AutoencoderVP"),
        ("__init__.py", "from .training import fit_codebook"),
    ],
)
def test_an_import_from_below_or_beside_is_not_caught(tmp_path, file, line):
    _plant(tmp_path, file, line)
    assert forbidden_imports(tmp_path) == []


def _plant(root: Path, file: str, line: str) -> None:
    for part in LAYERS.keys() - {PACKAGE, "distributed"}:
        (root / part).mkdir()
    (root / "distributed.py").touch()
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).write_text(line + "\n", encoding="utf-8")


def test_quantizers_know_no_model_library():
    assert {name.split(".")[0] for name in names_imported_in("quantizers")} & {"diffusers", "transformers"} == set()


@pytest.mark.parametrize("folder", ["neighbors", "codebook"])
def test_search_and_codebooks_know_no_module(folder):
    """No import of torch.nn, and no torch.nn.Module by its full name."""
    assert {name for name in names_imported_in(folder) if name.startswith("torch.nn")} == set()
    nodes = [node for file in (SOURCE / folder).rglob("*.py") for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    assert not [node for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.nn"]


def test_names_of_imports(tmp_path):
    file = tmp_path / "neighbors" / "index.py"
    file.parent.mkdir()
    file.write_text("from torch import Tensor, nn\nfrom torch.nn import Module\nimport torch.nn.functional as F\n")
    assert imported_names(file, tmp_path) == {"torch.Tensor", "torch.nn", "torch.nn.Module", "torch.nn.functional"}
