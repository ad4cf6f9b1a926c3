"""A dumped problem plans again from its file alone, in a process without torch."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graphremat import BudgetInfeasible, OptionError, PlanningError
from graphremat.cli import app
from graphremat.passes.plan import Plan
from graphremat.passes.replay import replay
from graphremat.passes.testing import chain
from graphremat.replan import load_problem, parse_budget, replan

PROBLEM = chain(length=30, size_bytes=1000)


@pytest.fixture
def dumped(tmp_path: Path) -> Path:
    path = tmp_path / "10-problem.json"
    path.write_text(PROBLEM.to_json())
    return path


def test_a_file_gives_the_problem_again(dumped: Path) -> None:
    assert load_problem(dumped) == PROBLEM


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "nonsense"])
def test_a_file_without_a_problem_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "10-problem.json"
    path.write_text(text)
    with pytest.raises(PlanningError, match="holds no problem"):
        load_problem(path)


def test_the_plan_is_the_fastest_under_the_budget() -> None:
    fastest, lowest = replan(PROBLEM, None), replan(PROBLEM, 0.0)
    assert fastest.chosen.replay.recompute_seconds == 0
    assert lowest.chosen.replay.peak_bytes == lowest.budget_bytes
    for fraction in (0.25, 0.5, 0.75):
        found = replan(PROBLEM, fraction)
        assert found.budget_bytes is not None
        assert found.chosen.replay.peak_bytes <= found.budget_bytes
        faster = found.frontier.candidates[: found.place]
        assert all(each.replay.peak_bytes > found.budget_bytes for each in faster)


def test_a_budget_below_every_plan_names_the_lowest() -> None:
    with pytest.raises(BudgetInfeasible) as caught:
        replan(PROBLEM, 2000)
    assert caught.value.lowest_peak_bytes == replan(PROBLEM, 0.0).chosen.replay.peak_bytes
    assert caught.value.holders


@pytest.mark.parametrize("text", ["auto", "2.0", "lots", "0"])
def test_a_bad_budget_is_refused(text: str) -> None:
    with pytest.raises(OptionError):
        parse_budget(text)


def test_the_command_shows_the_frontier_and_writes_the_plan(dumped: Path, tmp_path: Path) -> None:
    plan_to = tmp_path / "plan.json"
    result = CliRunner().invoke(app, ["replan", str(dumped), "--budget", "0.5", "--plan", str(plan_to)])
    assert result.exit_code == 0, result.output
    found = replan(PROBLEM, 0.5)
    assert result.output.count("->") == 1
    assert len(result.output.splitlines()) == len(found.frontier.candidates) + 1
    written = Plan.from_json(plan_to.read_text())
    assert replay(PROBLEM, written).peak_bytes == found.chosen.replay.peak_bytes


def test_the_exact_solver_says_what_it_proved(tmp_path: Path) -> None:
    path = tmp_path / "10-problem.json"
    path.write_text(chain(length=6).to_json())
    result = CliRunner().invoke(app, ["replan", str(path), "--budget", "0.0", "--exact", "30"])
    assert result.exit_code == 0, result.output
    assert "the exact solver knows of no plan more than 0.00% faster" in result.output
    fastest = CliRunner().invoke(app, ["replan", str(path), "--exact", "30"])
    assert "exact" not in fastest.output  # with no budget there is nothing to solve


def test_the_command_needs_no_torch(dumped: Path) -> None:
    code = """
import sys
sys.modules["torch"] = None  # importing it raises
from graphremat.cli import main
main()
"""
    command = [sys.executable, "-c", code, "replan", str(dumped), "--budget"]
    done = subprocess.run([*command, "0.0"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    failed = subprocess.run([*command, "2kB"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: no plan is under 1.95 KiB: the lowest replayed peak is")


def test_a_missing_file_is_a_mistake_in_the_command() -> None:
    assert CliRunner().invoke(app, ["replan", "nowhere.json"]).exit_code == 2
