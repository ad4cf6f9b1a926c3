"""The frontier: valid plans, in order, and near the best of all choices of saved values."""

import itertools
import math

import pytest
from hypothesis import assume, given, settings

from graphremat.passes.cut import NoCut
from graphremat.passes.planner import Frontier, judge, plan_frontier
from graphremat.passes.problem import Phase, Problem
from graphremat.passes.schedule import schedule
from graphremat.passes.stages import cut_out, find_stages
from graphremat.passes.testing import chain
from tests.passes.problems import problems


def in_order(frontier: Frontier) -> None:
    for faster, lower in itertools.pairwise(frontier.candidates):
        assert faster.replay.peak_bytes > lower.replay.peak_bytes
        assert faster.replay.seconds <= lower.replay.seconds


@settings(deadline=None, max_examples=80)
@given(problems(longest=10))
def test_every_plan_is_valid_and_in_order(problem: Problem) -> None:
    try:
        frontier = plan_frontier(problem, most=8)
    except NoCut:
        assume(False)
    in_order(frontier)
    for candidate in frontier.candidates:
        again = judge(problem, candidate.plan)
        assert again.replay.peak_bytes == candidate.replay.peak_bytes


def best_choice(problem: Problem, budget_bytes: int) -> float:
    """The fewest seconds of any set of saved values, scheduled lazily, under the budget."""
    values = [
        i
        for i, v in enumerate(problem.values)
        if v.producer >= 0 and problem.ops[v.producer].phase is Phase.FORWARD
    ]
    best = math.inf
    for size in range(len(values) + 1):
        for saved in itertools.combinations(values, size):
            run = judge(problem, schedule(problem, saved)).replay
            if run.peak_bytes <= budget_bytes:
                best = min(best, run.seconds)
    return best


@pytest.mark.parametrize(("internal", "gradient_bytes"), [(0, 0), (1, 0), (0, 60), (1, 60)])
def test_near_the_best_choice_on_short_chains(internal: int, gradient_bytes: int) -> None:
    problem = chain(9 // (internal + 1), internal=internal, gradient_bytes=gradient_bytes)
    frontier = plan_frontier(problem)
    lowest, highest = frontier.candidates[-1].replay.peak_bytes, frontier.candidates[0].replay.peak_bytes
    for step in range(5):
        budget = lowest + (highest - lowest) * step // 4
        place = frontier.under(budget)
        assert place is not None
        ours = frontier.candidates[place].replay.seconds
        assert ours <= best_choice(problem, budget) + 2.0  # of a step of 18 or more


def test_a_deep_chain_reaches_the_square_root() -> None:
    length = 100
    frontier = plan_frontier(chain(length))
    fastest, lowest = frontier.candidates[0].replay, frontier.candidates[-1].replay
    assert fastest.recompute_seconds == 0
    # Input, output, tangent and about two square roots of layers, 100 bytes each.
    assert lowest.peak_bytes <= 100 * (2 * math.sqrt(length) + 5)
    assert lowest.recompute_seconds <= length


def test_a_budget_below_the_lowest_plan_has_none() -> None:
    frontier = plan_frontier(chain(20))
    assert frontier.under(frontier.candidates[-1].replay.peak_bytes) == len(frontier.candidates) - 1
    assert frontier.under(frontier.candidates[-1].replay.peak_bytes - 1) is None
    assert frontier.under(10**9) == 0


def test_the_same_problem_gives_the_same_plans() -> None:
    first, second = (plan_frontier(chain(40, internal=2, gradient_bytes=30)) for _ in range(2))
    assert [c.plan for c in first.candidates] == [c.plan for c in second.candidates]


def test_stages_of_a_chain_are_its_layers() -> None:
    problem = chain(12, internal=2)
    stages = find_stages(problem)
    assert stages.starts[0] == 0
    assert stages.windows[0][1] == len(stages.backward)
    assert all(a[0] == b[1] for a, b in itertools.pairwise(stages.windows))
    assert all(len(c) == 1 for c in stages.crossing[1:])


def test_a_segment_has_the_bytes_of_its_part() -> None:
    problem = chain(6)
    segment = cut_out(problem, find_stages(problem), 1, 3)
    small = segment.problem
    assert small.input_bytes == 0
    assert {op.name for op in small.ops} == {"layer1", "layer2", "incoming", "grad2_0", "grad3_0"}
    assert [small.values[v].name for v in segment.next_crossing] == ["layer2"]
    assert [small.values[v].name for v in small.backward_outputs] == ["grad2_0"]
