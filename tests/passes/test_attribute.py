"""Seconds of calls divided among the ops of a plan: against seconds that were made up beforehand."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphremat.passes.attribute import MOST_RATIO, TimedCall, attribute, corrected
from graphremat.passes.cut import CutGraph, NoCut
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Kind, Problem
from graphremat.passes.replay import replay
from graphremat.passes.schedule import schedule
from graphremat.passes.testing import chain
from tests.passes.problems import problems


def call_by_call(problem: Problem, order: Sequence[int], seconds: Sequence[float]) -> list[TimedCall]:
    return [
        TimedCall((problem.ops[i].name,), f"call {i}", taken) for i, taken in zip(order, seconds, strict=True)
    ]


@st.composite
def planned(draw: st.DrawFn) -> tuple[Problem, Plan, dict[str, float]]:
    """A problem, a plan that recomputes, and what each op takes in truth over its price."""
    problem = draw(problems(longest=8))
    try:
        plan = schedule(problem, CutGraph(problem).solve(draw(st.sampled_from([0.0, 0.1, 10.0]))).saved)
    except NoCut:
        assume(False)
    factors = {op.name: draw(st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0])) for op in problem.ops}
    return problem, plan, factors


@settings(deadline=None)
@given(planned())
def test_prices_are_corrected_to_what_the_calls_took(made: tuple[Problem, Plan, dict[str, float]]) -> None:
    problem, plan, factors = made
    true_seconds = replay(corrected(problem, factors), plan)
    split = true_seconds.forward_length
    found = attribute(
        problem,
        plan,
        call_by_call(problem, plan.forward, true_seconds.op_seconds[:split].tolist()),
        call_by_call(problem, plan.backward, true_seconds.op_seconds[split:].tolist()),
    )
    again = replay(corrected(problem, found.ratios), plan)
    assert again.op_seconds.tolist() == pytest.approx(true_seconds.op_seconds.tolist())
    assert found.seconds == pytest.approx(true_seconds.seconds)
    assert found.attributed_seconds == pytest.approx(true_seconds.seconds)
    assert found.recomputed_seconds == pytest.approx(true_seconds.recompute_seconds)


def test_a_call_of_several_ops_is_divided_by_their_prices() -> None:
    problem = chain(length=3)
    problem = replace(problem, ops=tuple(replace(op, seconds=1.0 + i) for i, op in enumerate(problem.ops)))
    plan = schedule(problem, [])
    names = [problem.ops[i].name for i in plan.forward]
    found = attribute(problem, plan, [TimedCall((names[0], names[1], "unknown"), "both", 6.0)], [])
    assert found.ratios[names[0]] == found.ratios[names[1]] == 2.0
    assert found.ratios[names[2]] == 2.0, "an op that was not seen has the ratio of its kind"
    (call,) = found.calls
    assert (call.ops, call.priced_seconds) == ((names[0], names[1]), 3.0)


def test_a_call_of_unknown_ops_corrects_nothing() -> None:
    problem = chain(length=3)
    plan = schedule(problem, [])
    found = attribute(problem, plan, [TimedCall(("other",), "call", 5.0), TimedCall((), "copy", 1.0)], [])
    assert set(found.ratios.values()) == {1.0}
    assert (found.seconds, found.attributed_seconds) == (6.0, 0.0)


def test_a_disturbed_call_is_cut_off() -> None:
    problem = chain(length=2)
    plan = schedule(problem, [])
    name = problem.ops[plan.forward[0]].name
    found = attribute(problem, plan, [TimedCall((name,), "call", 1e6)], [])
    assert found.ratios[name] == MOST_RATIO


def test_views_are_not_corrected() -> None:
    problem = replace(chain(2), ops=tuple(replace(op, kind=Kind.VIEW) for op in chain(2).ops))
    assert not attribute(problem, schedule(chain(2), []), [], []).ratios
