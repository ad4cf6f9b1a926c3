"""The descent from the lowest plans: how far it comes, and which graphs get it."""

from typing import Any

import pytest

from bench.random_problems import random_problem
from graphremat.passes import planner
from graphremat.passes.frontier import judge
from graphremat.passes.planner import descended, plan_frontier
from graphremat.passes.problem import Phase, Problem
from graphremat.passes.schedule import schedule
from graphremat.passes.search import Search
from graphremat.passes.testing import chain


@pytest.mark.parametrize(("length", "internal"), [(12, 0), (8, 2)])
def test_the_descent_alone_goes_most_of_the_way_to_the_lowest_peak(length: int, internal: int) -> None:
    problem = chain(length, internal=internal)
    made = [w for op in problem.ops if op.phase is Phase.FORWARD for w in op.writes]
    everything = judge(problem, schedule(problem, made))
    lowest = plan_frontier(problem, most_recomputations=None).candidates[-1].replay.peak_bytes
    found = descended(Search(problem, most_looks=2_000, width=3), [everything], floor_bytes=0)
    assert all(c.replay.peak_bytes == judge(problem, c.plan).replay.peak_bytes for c in found)
    start, reached = everything.replay.peak_bytes, min(c.replay.peak_bytes for c in found)
    assert lowest <= reached <= start - 0.8 * (start - lowest)


def test_what_the_descent_finds_competes_on_the_frontier(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = chain(12)
    lowest = plan_frontier(problem).candidates[-1]
    monkeypatch.setattr(planner, "_searched", lambda *_: [])
    monkeypatch.setattr(planner, "_chain_plans", lambda *_, **__: [])
    monkeypatch.setattr(planner, "_block_plans", lambda *_: [])
    monkeypatch.setattr(planner, "descended", lambda *_: [lowest])
    assert plan_frontier(problem).candidates[-1] is lowest


def test_a_graph_that_is_too_large_for_the_search_is_descended_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problems = [random_problem(seed, least=40, most=60) for seed in range(6)]
    monkeypatch.setattr(planner, "SEARCH_WORK", 0)

    def lowest() -> list[int]:
        return [plan_frontier(problem).candidates[-1].replay.peak_bytes for problem in problems]

    down = lowest()
    monkeypatch.setattr(planner, "LARGE_DESCENT_WORK", 0)
    stayed = lowest()
    assert all(d <= s for d, s in zip(down, stayed, strict=True))
    assert down != stayed


@pytest.mark.parametrize("effort", [0.0, 0.1])
def test_with_less_than_the_usual_effort_nothing_more_is_descended(
    effort: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    begin = Search.__init__

    def counting(search: Search, problem: Problem, *, most_looks: int, **keywords: Any) -> None:
        begin(search, problem, most_looks=most_looks, **keywords)
        looked.append(most_looks)

    monkeypatch.setattr(Search, "__init__", counting)
    monkeypatch.setattr(planner, "SEARCH_WORK", 0)
    plan_frontier(chain(12), effort=effort)
    assert set(looked) == {0}
    plan_frontier(chain(12))
    assert max(looked) > 0


def test_a_descent_without_looks_finds_nothing() -> None:
    problem = chain(6)
    plans = plan_frontier(problem).candidates
    assert descended(Search(problem, most_looks=0), list(plans), floor_bytes=0) == []
