"""The descent from the lowest plans and the search of the gaps: how far they come, and which graphs get them."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.random_problems import random_problem
from graphremat.passes import planner, refine
from graphremat.passes.frontier import Candidate, judge, pareto
from graphremat.passes.planner import plan_frontier
from graphremat.passes.problem import Phase, Problem
from graphremat.passes.refine import descended, filled
from graphremat.passes.schedule import schedule
from graphremat.passes.search import Retention, Search, State
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
    monkeypatch.setattr(planner, "searched", lambda *_: [])
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


def test_a_gap_is_divided_again_and_again() -> None:
    problem = chain(33)
    ends = [judge(problem, schedule(problem, saved)) for saved in (tuple(range(1, 33)), (16,))]
    before, after = ends[0].replay.peak_bytes, ends[1].replay.peak_bytes
    found = filled(Search(problem, most_looks=400), ends, tries=20, most=64)
    peaks = [
        before,
        *(c.replay.peak_bytes for c in pareto([*ends, *found], 64) if c.replay.peak_bytes > after),
    ]
    assert max(high - low for high, low in zip(peaks, [*peaks[1:], after], strict=True)) < 0.1 * (
        before - after
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(0, 40))
def test_what_fills_gaps_is_replayed_and_within_the_looks(seed: int, most_looks: int) -> None:
    problem = random_problem(seed, least=20, most=40)
    plans = plan_frontier(problem, effort=0.0).candidates
    found = filled(Search(problem, most_looks=most_looks), plans, tries=4, most=64)
    assert len(found) <= most_looks
    assert all(judge(problem, c.plan).replay.peak_bytes == c.replay.peak_bytes for c in found)


def test_gaps_are_tried_once_each_and_first_where_most_can_be_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = chain(12)
    plans = plan_frontier(problem).candidates
    tried: list[int] = []
    monkeypatch.setattr(refine, "_improved", lambda _search, _known, budget: tried.append(budget))
    monkeypatch.setattr(refine, "_candidates", lambda _search: [])
    filled(Search(problem, most_looks=10_000), plans, tries=1_000, most=64)
    assert sorted(tried) == sorted(c.replay.peak_bytes - 1 for c in plans[:-1])
    lowest = plans[-1].replay.peak_bytes
    missed = {
        a.replay.peak_bytes - 1: (b.replay.seconds - a.replay.seconds)
        * (a.replay.peak_bytes - b.replay.peak_bytes)
        / (a.replay.peak_bytes - lowest)
        for a, b in itertools.pairwise(plans)
    }
    assert [missed[budget] for budget in tried] == sorted(missed.values(), reverse=True)


def test_each_gap_gets_its_share_of_the_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = chain(12)
    plans = plan_frontier(problem).candidates
    looks: list[int] = []

    def look_at_all(search: Search, _known: Sequence[State], _budget: int) -> list[State]:
        for place in range(1_000):
            search.look(Retention(frozenset({place % 12 + 1, place // 12 % 12 + 1})))
        looks.append(len(list(search.states)))
        return []

    monkeypatch.setattr(refine, "_improved", look_at_all)
    filled(Search(problem, most_looks=60), plans, tries=4, most=64)
    assert looks == [15, 30, 45, 60]


def test_the_planner_fills_gaps_and_no_budget_gets_a_slower_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [random_problem(seed, least=40, most=60) for seed in range(6)]
    monkeypatch.setattr(planner, "SEARCH_WORK", 0)

    def plans() -> list[tuple[Candidate, ...]]:
        return [plan_frontier(problem, most=1_000).candidates for problem in problems]

    ours = plans()
    monkeypatch.setattr(planner, "GAP_WORK", 0)
    theirs = plans()
    faster = 0
    for mine, other in zip(ours, theirs, strict=True):
        for candidate in other:
            run = candidate.replay
            best = min(c.replay.seconds for c in mine if c.replay.peak_bytes <= run.peak_bytes)
            assert best <= run.seconds
            faster += best < run.seconds
    assert faster
