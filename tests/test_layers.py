"""Who may know what: passes never import the face, some never import torch, one package has private names of torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PASSES = sorted((ROOT / "passes").glob("*.py"))
PRIVATE = sorted((ROOT / "passes" / "torch_private").glob("*.py"))
FACE = sorted((ROOT / "graphremat").glob("*.py"))

PASSES_WITH_TORCH = {
    "buffers",
    "build",
    "classify",
    "costs",
    "flops",
    "hints",
    "kinds",
    "measure_device",
    "measure_ops",
    "scratch",
    "split",
    "traffic",
    "verify",
}
"""The passes that know FX. Every other one plans on a dump alone, and a new one does unless it is named here."""

WITHOUT_TORCH = """
import importlib, sys
sys.modules["torch"] = None  # importing it raises
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def imports(path: Path) -> Iterator[str]:
    """The full name of everything that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def run_without_torch(names: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *names]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_planner_imports_without_torch() -> None:
    names = [
        f"graphremat.passes.{path.stem}"
        for path in PASSES
        if path.stem not in {"__init__", *PASSES_WITH_TORCH}
    ]
    assert len(names) > 5
    face = ("options", "choose", "report", "dumps", "replan", "cli", "doctor", "report_page")
    names += [f"graphremat.{name}" for name in face]
    done = run_without_torch(names)
    assert done.returncode == 0, done.stderr


def test_what_is_tested_above_would_fail_with_torch() -> None:
    assert "torch" in run_without_torch(["graphremat.passes.torch_private"]).stderr


@pytest.mark.parametrize("path", [*PASSES, *PRIVATE], ids=lambda path: path.stem)
def test_passes_never_import_the_face(path: Path) -> None:
    face = [
        name
        for name in imports(path)
        if name.split(".")[0] == "graphremat" and not f"{name}.".startswith("graphremat.passes.")
    ]
    assert face == []


@pytest.mark.parametrize("path", [*PASSES, *FACE], ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_one_package_imports_the_private_names_of_torch(path: Path) -> None:
    private = [
        name for name in imports(path) if name.startswith("torch._") or name.split(".")[0] == "functorch"
    ]
    assert private == []


@pytest.mark.parametrize("path", [*PASSES, *FACE], ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_no_module_reaches_a_private_part_of_torch_by_its_attributes(path: Path) -> None:
    reached = [
        f"torch.{node.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
        and node.attr.startswith("_")
        and node.attr != "__version__"
    ]
    assert reached == []
