"""Crossings of plans: valid, of the two they are made of, and never to the harm of a frontier."""

import itertools
import math
import time
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bench.random_problems import random_problem
from graphremat.passes import planner
from graphremat.passes.crossover import crossed
from graphremat.passes.cut import NoCut, varied_cuts
from graphremat.passes.frontier import Candidate, judge, pareto
from graphremat.passes.plan import check_plan
from graphremat.passes.planner import plan_frontier
from graphremat.passes.problem import Phase, Problem
from graphremat.passes.schedule import ScheduleError, schedule
from graphremat.passes.testing import chain
from tests.passes.problems import problems


def cuts_of(problem: Problem) -> list[Candidate]:
    """The cuts of the whole problem, judged."""
    try:
        return [judge(problem, schedule(problem, cut.saved)) for cut in varied_cuts(problem, 16)]
    except (NoCut, ScheduleError):
        assume(False)
        raise


def seconds_at(found: list[Candidate], budget_bytes: int) -> float:
    return min((c.replay.seconds for c in found if c.replay.peak_bytes <= budget_bytes), default=math.inf)


@settings(deadline=None, max_examples=60)
@given(problems(longest=12), st.integers(0, 20))
def test_crossings_are_plans_of_what_two_others_save(problem: Problem, most_looks: int) -> None:
    found = cuts_of(problem)
    made = crossed(problem, found, most_looks=most_looks)
    assert len(made) <= most_looks
    saved_somewhere = {v for c in found for v in c.plan.saved}
    known = {c.plan.saved for c in found}
    for candidate in made:
        check_plan(problem, candidate.plan)
        assert judge(problem, candidate.plan).replay.peak_bytes == candidate.replay.peak_bytes
        assert set(candidate.plan.saved) <= saved_somewhere
        assert candidate.plan.saved not in known


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_no_budget_gets_a_slower_plan(seed: int) -> None:
    problem = random_problem(seed, least=20, most=40)
    found = cuts_of(problem)
    made = crossed(problem, found, most_looks=60)
    front = list(pareto([*found, *made], len(found) + len(made)))
    for candidate in (*found, *made):
        budget = candidate.replay.peak_bytes
        assert seconds_at(front, budget) <= seconds_at(found, budget)
        assert seconds_at(front, budget) <= candidate.replay.seconds


def test_a_gap_between_two_cuts_is_filled() -> None:
    problem = chain(33)
    everything, nothing = (judge(problem, schedule(problem, saved)) for saved in (range(1, 33), [16]))
    made = crossed(problem, [everything, nothing], most_looks=200)
    front = pareto([everything, nothing, *made], 1000)
    peaks = [c.replay.peak_bytes for c in front]
    assert peaks[0] == everything.replay.peak_bytes
    assert peaks[-1] <= nothing.replay.peak_bytes
    steps = [high - low for high, low in itertools.pairwise(peaks)]
    assert max(steps) <= 2 * 100, "two layers at most"


def test_nothing_is_looked_at_after_the_deadline() -> None:
    problem = chain(12)
    found = [judge(problem, schedule(problem, saved)) for saved in (range(1, 12), [6])]
    assert crossed(problem, found, most_looks=50, deadline=time.monotonic()) == []
    assert crossed(problem, found[:1], most_looks=50) == []


def test_results_that_are_written_out_stay_so() -> None:
    problem = chain(12)
    backward = next(i for i, op in enumerate(problem.ops) if op.phase is Phase.BACKWARD)
    high = judge(problem, schedule(problem, range(1, 12)))
    low = schedule(problem, [6])
    found = [high, judge(problem, replace(low, written=(backward,)))]
    assert {c.plan.written for c in crossed(problem, found, most_looks=6)} == {(backward,)}


@pytest.mark.parametrize("seed", [3, 5, 9])
def test_the_planner_crosses_plans(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large graphs, where the local search looks at little."""
    monkeypatch.setattr(planner, "SEARCH_WORK", 0)
    monkeypatch.setattr(planner, "GAP_WORK", 0)
    problem = random_problem(seed, least=40, most=60)
    ours = list(plan_frontier(problem, most=1000).candidates)
    monkeypatch.setattr(planner, "MOST_CROSSINGS", 0)
    theirs = list(plan_frontier(problem, most=1000).candidates)
    budgets = [c.replay.peak_bytes for c in (*ours, *theirs)]
    assert all(seconds_at(ours, b) <= seconds_at(theirs, b) for b in budgets)
    assert any(seconds_at(ours, b) < seconds_at(theirs, b) for b in budgets)
