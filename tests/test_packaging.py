"""What is installed: one package, its passes under one name, no torch at import, and the backend found by its name."""

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import graphremat
from graphremat.report_page import SCRIPTS
from graphremat.versions import SUPPORTED_TORCH

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a new interpreter, with nothing on its path but ``cwd`` and what is installed."""
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


def last_error_line(code: str, *, cwd: Path) -> str:
    done = python(code, cwd=cwd)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_passes_have_one_name_in_the_repository() -> None:
    assert last_error_line("import passes", cwd=ROOT) == (
        "ImportError: this package is imported as 'graphremat.passes', not as 'passes'"
    )


@pytest.mark.parametrize("name", ["passes", "bench", "tests"])
def test_no_other_folder_is_importable_elsewhere(tmp_path: Path, name: str) -> None:
    assert last_error_line(f"import {name}", cwd=tmp_path) == f"ModuleNotFoundError: No module named {name!r}"


def test_importing_the_package_leaves_torch_alone(tmp_path: Path) -> None:
    code = """
import sys, graphremat, graphremat.options, graphremat.versions, graphremat.cli, graphremat.passes
assert "torch" not in sys.modules
"""
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    for name in graphremat.__all__:
        assert getattr(graphremat, name) is not None
    assert set(graphremat.__all__) <= set(dir(graphremat))
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = graphremat.nothing_like_it


def test_torch_finds_the_backend_by_its_name() -> None:
    (entry,) = metadata.entry_points(group="torch_dynamo_backends", name="graphremat")
    assert entry.value == "graphremat.backend:graphremat"
    assert callable(entry.load())


def test_the_version_is_told_once() -> None:
    assert metadata.version("graphremat") == graphremat.__version__


def test_the_requirement_of_torch_is_the_supported_versions() -> None:
    first, last = SUPPORTED_TORCH[0], SUPPORTED_TORCH[-1]
    requirement = f"torch>={first[0]}.{first[1]},<{last[0]}.{last[1] + 1}"
    assert f'"{requirement}"' in (ROOT / "pyproject.toml").read_text()
    assert f"\nTORCH ?= {requirement}\n" in (ROOT / "Makefile").read_text()


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    (wheel,) = folder.iterdir()
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_holds_every_module_once(wheel_names: list[str]) -> None:
    face = {f"graphremat/{path.name}" for path in (ROOT / "graphremat").glob("*.py")}
    passes = {f"graphremat/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "passes").rglob("*.py")}
    assert {name for name in wheel_names if name.endswith(".py")} == face | passes
    assert len(wheel_names) == len(set(wheel_names))
    assert "graphremat/py.typed" in wheel_names


def test_the_wheel_holds_what_the_page_of_a_report_is_made_of(wheel_names: list[str]) -> None:
    page = {f"graphremat/page/{name}" for name in ("page.html", "page.css", *SCRIPTS)}
    assert {name for name in wheel_names if name.startswith("graphremat/page/")} == page


def test_the_wheel_has_one_top_level_package(wheel_names: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel_names}
    assert {name for name in top if not re.fullmatch(r"graphremat-.*\.dist-info", name)} == {"graphremat"}
