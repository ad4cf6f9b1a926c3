"""The two small benches of planning: a sweep over budgets, and recomputing more than once."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench import sweep_budgets
from bench.recompute_often import lowest
from bench.sweep_budgets import sweep
from graphremat.passes.frontier import Frontier
from graphremat.passes.planner import plan_frontier
from graphremat.passes.testing import chain


def test_a_sweep_of_a_frontier_finds_nothing_wrong() -> None:
    problem = chain(20, internal=1)
    found = sweep("chain", problem, plan_frontier(problem), 50)
    assert (found.over, found.risen, found.recomputed_more) == (0, 0, 0)
    assert found.plans > 3
    assert 0.5 < found.used_share <= 1.0


def test_a_spoilt_frontier_is_noticed() -> None:
    problem = chain(20)
    first, *rest, last = plan_frontier(problem).candidates
    slow = replace(first, plan=last.plan)  # the slowest plan in the place of the fastest
    assert sweep("chain", problem, Frontier((slow, *rest, last)), 50).risen > 0
    assert sweep("chain", problem, Frontier((slow, *rest, last)), 50).recomputed_more > 0
    large = replace(last, plan=first.plan)  # the largest in the place of the smallest
    assert sweep("chain", problem, Frontier((first, *rest, large)), 50).over > 0


def test_the_command_reads_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.json").write_text(chain(6).to_json())
    assert sweep_budgets.main(["--networks", "small", "--problems", str(tmp_path), "--budgets", "9"]) == 0
    assert "small" in capsys.readouterr().out


def test_more_recomputation_reaches_lower() -> None:
    problem = chain(40)
    once, twice = lowest(problem, 1), lowest(problem, 2)
    assert (once.most_runs, twice.most_runs) == (1, 2)
    assert twice.peak_layers < once.peak_layers
    assert twice.added_seconds > once.added_seconds
