"""What README.md says is so: its code runs, its options are the options, its versions are the supported ones."""

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from bench import correctness, on_gpu
from bench.budget_rows import LABELS, read_results
from bench.budget_summary import MARKS, RESULTS, latest, table_of
from bench.correctness import lines_of
from bench.networks import NETWORKS
from bench.training_scripts import SCRIPTS
from graphremat.cli import app
from graphremat.llama import LLAMAS
from graphremat.options import Options
from graphremat.versions import supported_torch_text

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
COMPILING_BLOCKS = [code for code in PYTHON_BLOCKS if "torch.compile" in code]
(PLANNING_BLOCK,) = (code for code in PYTHON_BLOCKS if "graphremat.plan(" in code)


def test_there_is_code_to_run() -> None:
    assert len(PYTHON_BLOCKS) == README.count("```python") == len(COMPILING_BLOCKS) + 1 == 3


def test_planning_without_running_says_the_same_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(PLANNING_BLOCK, "README.md", "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out
    assert "fits L4" in said
    (tmp_path / "net.py").write_text(PLANNING_BLOCK.partition("\n\n\nprint(")[0])
    (command,) = re.findall(r"^graphremat (plan .*)$", README, flags=re.MULTILINE)
    result = CliRunner().invoke(app, command.replace("net.py", str(tmp_path / "net.py")).split())
    assert result.exit_code == 0, result.output
    assert result.stdout == said.removesuffix("\n")


def test_the_largest_batch_of_a_smaller_network(tmp_path: Path) -> None:
    smaller = PLANNING_BLOCK.partition("\n\n\nprint(")[0].replace("range(4)", "range(1)")
    (tmp_path / "net.py").write_text(smaller)
    (command,) = re.findall(r"^graphremat (max-batch .*)$", README, flags=re.MULTILINE)
    result = CliRunner().invoke(app, command.replace("net.py", str(tmp_path / "net.py")).split())
    assert result.exit_code == 0, result.output
    assert "holds a batch of" in result.stdout


@pytest.mark.parametrize(
    "command", re.findall(r"^graphremat ((?:frontier|compare|advise) .*)$", README, re.MULTILINE)
)
def test_what_is_asked_of_a_large_model_of_a_tiny_one(command: str) -> None:
    torch.compiler.reset()
    assert command.split()[1] in LLAMAS
    tiny = command.replace("llama-3-8b", "llama-tiny --sequence 64")
    result = CliRunner().invoke(app, tiny.split())
    assert result.exit_code == 0, result.output
    assert result.stdout


def test_the_models_that_are_named_are_there() -> None:
    assert set(re.findall(r"`(llama-[\w-]+)`", README)) | {"llama-tiny"} == set(LLAMAS)


@pytest.mark.parametrize("code", COMPILING_BLOCKS, ids=["budget", "infeasible"])
def test_the_code_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code.count("options={") == 1
    quick = code.replace("options={", 'options={"lowering": "aot_eager", ')
    exec(compile(quick, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


def test_the_options_are_the_options() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| \S.* \|$", README, flags=re.MULTILINE)
    assert rows == [(option.name, repr(option.default)) for option in fields(Options)]


def test_the_supported_versions_are_stated() -> None:
    assert f"Supported: torch {supported_torch_text()}." in README


def test_every_file_that_is_named_is_there() -> None:
    root = Path(__file__).resolve().parents[1]
    named = set(re.findall(r"\]\(([\w/.]+)\)", README)) | set(re.findall(r"`(\w+/\w+\.py)`", README))
    assert named
    assert [name for name in sorted(named) if not (root / name).exists()] == []


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the only graph in a folder of dumps."""
    root = tmp_path_factory.mktemp("dump")
    torch.compiler.reset()
    options = {"lowering": "aot_eager", "memory_budget": 0.0, "dump_dir": str(root)}
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))
    torch.compile(model, backend="graphremat", options=options)(torch.ones(64, 8)).sum().backward()
    (folder,) = root.iterdir()
    return folder


def test_the_files_of_a_dump_are_the_files_named(dump: Path) -> None:
    table = README.split("<!-- dump files -->")[1].split("<!-- end of dump files -->")[0]
    named = re.findall(r"`([\w.-]+)`", table)
    assert named == sorted(named[:-4]) + named[-4:]
    others = {"60-forward-code.py", "61-backward-code.py", "70-truth.md"}  # of Inductor, and of profile
    assert {path.name for path in dump.iterdir()} == set(named) - others


def test_the_report_is_made_again_with_figures(dump: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra report)")
    folder = shutil.copytree(dump, tmp_path / dump.name)
    (command,) = re.findall(r"^graphremat (report .*)$", README, flags=re.MULTILINE)
    result = CliRunner().invoke(app, command.replace("graphremat-dump", str(tmp_path)).split())
    assert result.exit_code == 0, result.output
    made = [folder / name for name in ("report.html", "curve.svg", "frontier.svg")]
    assert result.output.splitlines() == list(map(str, made))


def test_the_table_of_budgets_is_what_was_measured() -> None:
    table = README.split(MARKS[0])[1].split(MARKS[1])[0]
    rows = latest(read_results(RESULTS))
    assert table.strip().splitlines() == table_of(rows)
    assert list(rows) == sorted(NETWORKS)
    assert all(len(of_one) == len(LABELS) for of_one in rows.values())


def test_the_page_of_a_gpu_is_what_was_measured(tmp_path: Path) -> None:
    page, anew = ROOT / "docs" / "gpu.md", tmp_path / "gpu.md"
    anew.write_text(re.sub(r"^\| .*\n", "", page.read_text(), flags=re.MULTILINE))
    assert anew.read_text() != page.read_text()
    assert on_gpu.main(["--results", str(ROOT / "bench" / "results" / "h100"), "--page", str(anew)]) == 0
    assert anew.read_text() == page.read_text()


@pytest.mark.xfail(
    strict=True,
    reason="one kernel of the U-Net of symbolic sizes spills, and one of flex attention's, as the page says",
)
def test_the_code_that_was_lowered_spills_nothing() -> None:
    """Which is what is wanted: mended, the mark goes, and the page's words with the tests of them below."""
    rows = [json.loads(line) for line in on_gpu.LOWERED.read_text().splitlines()]
    assert all(row["spilling_kernels"] == row["least_spill_bytes"] == 0 for row in rows)


def spilling_more_than_inductors() -> list[dict[str, Any]]:
    """The rows of ours of which the kernels spill more than those of plain Inductor in the same setting."""
    rows = [json.loads(line) for line in on_gpu.LOWERED.read_text().splitlines()]
    assert rows

    def setting(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in ("network", "size", "dtype", "capability", "autocast", "dynamic"))

    plain = {setting(row): row["least_spill_bytes"] for row in rows if row["budget"] == "torch"}
    return [row for row in rows if row["least_spill_bytes"] > plain[setting(row)]]


@pytest.mark.xfail(
    strict=True, reason="one kernel of the U-Net of symbolic sizes spills under each budget, as the page says"
)
def test_the_code_that_was_lowered_spills_nothing_that_inductors_does_not() -> None:
    """What is asked for at least."""
    assert not spilling_more_than_inductors()


def test_the_page_says_what_spills() -> None:
    page = " ".join((ROOT / "docs/gpu.md").read_text().split())
    rows = [json.loads(line) for line in on_gpu.LOWERED.read_text().splitlines()]
    spilling = spilling_more_than_inductors()
    as_inductors = [row for row in rows if row["spilling_kernels"] and row not in spilling]
    assert {(row["network"], row["dynamic"], row["spilling_kernels"]) for row in as_inductors} == {
        ("flex_attention", True, 1)
    }
    (least,) = {row["least_spill_bytes"] for row in as_inductors}
    assert (
        f"One kernel of flex attention with symbolic sizes spills {least} bytes in plain Inductor's code"
        in page
    )
    assert {(row["network"], row["dynamic"], row["spilling_kernels"]) for row in spilling} == {
        ("unet", True, 1)
    }
    told = [f"{row['least_spill_bytes']} bytes {_at(row['budget'])}" for row in spilling]
    assert f"of the U-Net of symbolic sizes, one kernel spills {' and '.join(told)}" in page


def _at(budget: float | None) -> str:
    return "without a budget" if budget is None else f"at {budget}"


def test_the_code_that_was_lowered_keeps_its_budgets_and_in_float32_the_plan() -> None:
    """As the page says below its table."""
    rows = [json.loads(line) for line in on_gpu.LOWERED.read_text().splitlines()]
    with_budget = [row for row in rows if row["budget_bytes"] is not None]
    assert with_budget
    assert all(row["generated_bytes"] <= row["budget_bytes"] for row in with_budget)
    in_float32 = [row for row in with_budget if row["dtype"] == "float32" and not row["autocast"]]
    assert len(in_float32) > 50
    assert min(row["planned_bytes"] / row["generated_bytes"] for row in in_float32) > 0.997


@pytest.mark.xfail(strict=True, reason="the U-Net under autocast at 0.0 was planned 22.2% too low")
def test_the_code_that_was_lowered_keeps_its_budgets_and_is_near_the_plan() -> None:
    """What was so with an earlier planner, whose lowest plan and code both took more."""
    rows = [json.loads(line) for line in on_gpu.LOWERED.read_text().splitlines()]
    with_budget = [row for row in rows if row["budget_bytes"] is not None]
    assert with_budget
    assert all(row["generated_bytes"] <= row["budget_bytes"] for row in with_budget)
    of_plans = [row for row in rows if row["budget"] != "torch"]
    assert min(row["planned_bytes"] / row["generated_bytes"] for row in of_plans) > 0.78


def test_the_table_of_training_scripts_is_what_was_measured() -> None:
    page = (ROOT / "docs" / "training_scripts.md").read_text()
    lines = lines_of(correctness.latest(correctness.read_rows(correctness.RESULTS)))
    assert {line[1] for line in lines} == set(SCRIPTS)
    assert correctness.is_good(lines)
    assert page == correctness.page_of(lines)
