"""The table of stages in passes/README.md against the code."""

import importlib
import re
from pathlib import Path

import pytest

PASSES = Path(__file__).resolve().parents[2] / "passes"
TEXT = (PASSES / "README.md").read_text()
ROWS = re.findall(
    r"^\| [0-9to ]+ \| `(\w+)` \| `([\w.]+)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", TEXT, re.MULTILINE
)


def test_the_table_has_every_stage() -> None:
    assert len(ROWS) == 13


@pytest.mark.parametrize(("module", "function", "takes", "gives", "knows"), ROWS)
def test_a_stage_is_as_the_table_says(module: str, function: str, takes: str, gives: str, knows: str) -> None:
    loaded = importlib.import_module(f"graphremat.passes.{module}")
    found, hints = loaded, ""
    for part in function.split("."):
        found = getattr(found, part)
        signature = found.__init__ if isinstance(found, type) else found
        hints += " ".join(str(hint) for hint in signature.__annotations__.values())
    for name in re.findall(r"`([A-Z]\w+)`", takes + gives):
        assert name in hints, f"{function} has no {name} in its signature"
    imports_fx = "import torch" in (PASSES / f"{module}.py").read_text()
    assert imports_fx == (knows.strip() == "FX") or module == "verify"


def test_every_module_is_named() -> None:
    for path in sorted(PASSES.glob("*.py")):
        if path.stem != "__init__":
            assert f"`{path.stem}`" in TEXT, f"{path.name} is not in passes/README.md"
