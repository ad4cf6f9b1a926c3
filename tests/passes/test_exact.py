"""The exact solver against brute force, against plans of the planner, and on examples counted by hand."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphremat.passes.exact import Exact, solve_exact
from graphremat.passes.plan import Plan, check_plan
from graphremat.passes.planner import plan_frontier
from graphremat.passes.problem import Builder, Kind, Op, Phase, Problem
from graphremat.passes.relax import relax_fusion
from graphremat.passes.replay import replay
from graphremat.passes.testing import chain
from tests.passes.brute_force import best_seconds, lowest_peak
from tests.passes.problems import problems


def solve(problem: Problem, budget_bytes: int, **options: object) -> Exact:
    """Solve and check that what is said of the plan holds."""
    found = solve_exact(problem, budget_bytes, **options)
    assert (found.plan is None) == (found.seconds is None)
    if found.plan is not None:
        check_plan(problem, found.plan)
        run = replay(problem, found.plan)
        assert run.peak_bytes <= budget_bytes
        assert run.seconds == found.seconds
        assert found.bound_seconds <= found.seconds
    return found


def agree(problem: Problem, fraction: float) -> None:
    """The optimum at the lowest budget, just under it, and somewhere above it is that of brute force."""
    lowest = lowest_peak(problem, in_order=True)
    most = sum(s.size_bytes for s in problem.storages)
    for budget in [most] if lowest is None else [lowest - 1, lowest, lowest + int(fraction * most)]:
        best = best_seconds(problem, budget, in_order=True)
        found = solve(problem, budget)
        assert found.proved
        if best is None:
            assert found == Exact(None, None, math.inf, True)
        else:
            assert found.seconds == pytest.approx(best)
            assert found.bound_seconds == pytest.approx(best)


def with_either(problem: Problem) -> Problem:
    """Ops that no output of the forward needs run for the backward's sake only."""
    needed: set[int] = set()
    pending = list(problem.forward_outputs)
    while pending:
        index = problem.values[pending.pop()].producer
        if index >= 0 and index not in needed:
            needed.add(index)
            pending += problem.ops[index].reads
    ops = tuple(
        replace(op, phase=Phase.EITHER) if op.phase is Phase.FORWARD and i not in needed else op
        for i, op in enumerate(problem.ops)
    )
    return replace(problem, ops=ops)


@settings(deadline=None, max_examples=100)
@given(problems(longest=5, fuses=False), st.floats(0.0, 0.5))
def test_the_optimum_is_that_of_brute_force(problem: Problem, fraction: float) -> None:
    agree(problem, fraction)


@settings(deadline=None, max_examples=60)
@given(problems(longest=5, fuses=False), st.floats(0.0, 0.5))
def test_ops_for_the_backward_alone_run_where_it_pays(problem: Problem, fraction: float) -> None:
    agree(with_either(problem), fraction)


@settings(deadline=None, max_examples=40)
@given(problems(longest=4, fuses=False), st.data())
def test_a_gradient_may_be_a_value_of_the_forward(problem: Problem, data: st.DataObject) -> None:
    made = [w for op in problem.ops if op.phase is Phase.FORWARD for w in op.writes]
    outputs = dict.fromkeys([*problem.backward_outputs, data.draw(st.sampled_from(made))])
    agree(with_either(replace(problem, backward_outputs=tuple(outputs))), 0.2)


@settings(deadline=None, max_examples=30)
@given(problems(longest=5, fuses=False), st.floats(0.0, 0.5))
def test_a_free_order_is_never_slower(problem: Problem, fraction: float) -> None:
    lowest = lowest_peak(problem)
    if lowest is not None:
        budget = lowest + int(fraction * sum(s.size_bytes for s in problem.storages))
        found = solve(problem, budget)
        assert best_seconds(problem, budget) <= found.bound_seconds + 1e-6


def free_order() -> Problem:
    """Two branches of the forward meet in one op of the backward; the second makes something large on its way.

    In the order of the indices the first branch's result is alive beside it; the other way round it is not.
    """
    b = Builder(fuses=False)
    x = b.input("x", 0)
    kernel = Kind.KERNEL
    small = b.op("small", [x], kernel, Phase.FORWARD, size_bytes=4, seconds=1.0, unsavable="example")
    large = b.op("large", [x], kernel, Phase.FORWARD, size_bytes=10, seconds=1.0, unsavable="example")
    little = b.op("little", [large], kernel, Phase.FORWARD, size_bytes=1, seconds=1.0, unsavable="example")
    y = b.op("y", [x], kernel, Phase.FORWARD, seconds=1.0)
    t = b.tangent("t", 0)
    g = b.op("g", [t, small, little], kernel, Phase.BACKWARD, seconds=1.0)
    return b.build([y], [g])


def test_another_order_can_need_less() -> None:
    problem = free_order()
    # forward: small dies at its own op, so large + little is the most; the backward has small beside it
    assert lowest_peak(problem, in_order=True) == 15
    assert solve(problem, 14) == Exact(None, None, math.inf, True)
    assert lowest_peak(problem) == 11
    assert best_seconds(problem, 11) == 8.0
    other = Plan((), (0, 1, 2, 3), (1, 2, 0, 4))
    assert replay(problem, other).peak_bytes == 11


def twice_between() -> Problem:
    """One op of the backward reads ``a`` late on a path that also began with ``a``, with something large between."""
    b = Builder(fuses=False)
    x = b.input("x", 0)
    kernel = Kind.KERNEL
    a = b.op("a", [x], kernel, Phase.FORWARD, size_bytes=5, seconds=1.0, unsavable="example")
    c = b.op("c", [a], kernel, Phase.FORWARD, size_bytes=1, seconds=1.0, unsavable="example")
    d = b.op("d", [c], kernel, Phase.FORWARD, size_bytes=10, seconds=1.0, unsavable="example")
    e = b.op("e", [d], kernel, Phase.FORWARD, size_bytes=1, seconds=1.0, unsavable="example")
    y = b.op("y", [x], kernel, Phase.FORWARD, seconds=1.0)
    t = b.tangent("t", 0)
    g = b.op("g", [t, a, e], kernel, Phase.BACKWARD, seconds=1.0)
    return b.build([y], [g])


def test_an_op_run_twice_between_two_ops_of_the_backward_can_need_less() -> None:
    problem = twice_between()
    assert lowest_peak(problem, in_order=True) == 16  # a, d and what d is read for or made from
    assert solve(problem, 15) == Exact(None, None, math.inf, True)
    assert lowest_peak(problem) == 11
    assert best_seconds(problem, 11) == 5 + 5 + 1  # a twice in the backward
    assert replay(problem, Plan((), (0, 1, 2, 3, 4), (0, 1, 2, 3, 0, 5))).peak_bytes == 11


def test_chains_counted_by_hand() -> None:
    """Layers and gradients of 100 bytes; the input, the tangent and the output are there all the time.

    With these 300, the ``k``-th op of the backward has its gradient (from the second on), its result and its operand,
    layer ``n - 1 - k``; the last one reads the input.
    """
    for budget, seconds in ((800, 8.0), (700, 8.0), (600, 9.0), (599, None)):
        # Of four layers, three are saved: the first op has 300 + 100 + 3 * 100, the second two gradients and two
        # layers. Under 600 the second has no room for layer 0 beside layer 1, so that one is made again.
        assert solve(chain(4), budget).seconds == seconds
        assert best_seconds(replace(chain(4), fuses=False), budget) == seconds
    for budget, seconds in ((800, 10.0), (700, 11.0), (600, 13.0), (599, None)):
        # Of five, 800 holds four at the first op and three beside two gradients at the second. 700 holds 3, 2, 1 and
        # then 2, 1: layer 0 is made again. Under 600 one more than the layer that is read fits at the first op, none
        # later: with 2 saved, 0 and 1 are made for the third op and 0 for the fourth; with 1 saved, 2 in addition.
        assert solve(chain(5), budget).seconds == seconds
        assert best_seconds(replace(chain(5), fuses=False), budget) == seconds


def test_an_op_may_be_limited_to_so_many_recomputations() -> None:
    problem = chain(5)
    free = solve(problem, 600)
    assert free.plan is not None
    assert sorted(free.plan.recomputed(problem)) == [0, 0, 1]  # layer 0 on the way to layer 1, and for itself
    assert solve(problem, 600, most_recomputations=2).seconds == 13.0
    assert solve(problem, 600, most_recomputations=1) == Exact(None, None, math.inf, True)
    once = solve(problem, 700, most_recomputations=1)
    assert once.plan is not None
    assert once.plan.recomputed(problem) == (0,)
    assert solve(problem, 700, most_recomputations=0) == Exact(None, None, math.inf, True)
    assert solve(problem, 800, most_recomputations=0).seconds == 10.0


@settings(deadline=None, max_examples=20)
@given(problems(longest=5, fuses=False), st.sampled_from([0.0, 1e-6, 1e-3]))
def test_a_bound_is_a_bound_without_time(problem: Problem, seconds: float) -> None:
    lowest = lowest_peak(problem, in_order=True)
    if lowest is not None:
        best = best_seconds(problem, lowest, in_order=True)
        assert solve(problem, lowest, time_limit_seconds=seconds).bound_seconds <= best + 1e-6


@settings(deadline=None, max_examples=60)
@given(problems(longest=6, fuses=True))
def test_the_relaxation_of_fusion_bounds_every_plan_of_the_planner(problem: Problem) -> None:
    try:
        frontier = plan_frontier(problem)
    except ValueError:
        return
    for candidate in frontier.candidates:
        found = solve(problem, candidate.replay.peak_bytes)
        assert found.bound_seconds <= candidate.replay.seconds + 1e-6


def test_a_kernel_writes_over_its_operand_in_the_relaxation() -> None:
    b = Builder()
    x = b.input("x", 0)
    a = b.op("a", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=10, seconds=1.0)
    h = b.op("h", [a], Kind.FUSIBLE, Phase.FORWARD, size_bytes=10, seconds=1.0, fused_seconds=0.5)
    y = b.op("y", [h], Kind.KERNEL, Phase.FORWARD, seconds=1.0)
    g = b.op("g", [b.tangent("t", 0)], Kind.KERNEL, Phase.BACKWARD, seconds=1.0)
    problem = b.build([y], [g])
    relaxation = relax_fusion(problem)
    assert relaxation.in_place == {1}
    assert relaxation.problem.ops[1].seconds == 1.0  # a kernel reads it: it has a buffer
    assert solve(problem, 10) == Exact(Plan((), (0, 1, 2), (3,), "exact"), 4.0, 4.0, True)
    assert solve(replace(problem, fuses=False), 10).plan is None


def test_what_fuses_has_no_bytes_in_the_relaxation() -> None:
    b = Builder()
    x = b.input("x", 0)
    h = b.op("h", [x], Kind.FUSIBLE, Phase.FORWARD, size_bytes=10, seconds=1.0, fused_seconds=0.5)
    y = b.op("y", [h], Kind.REDUCTION, Phase.FORWARD, size_bytes=1, seconds=1.0)
    late = b.op("late", [x], Kind.FUSIBLE, Phase.FORWARD, size_bytes=10, seconds=1.0, fused_seconds=0.5)
    g = b.op("g", [b.tangent("t", 0), late], Kind.KERNEL, Phase.BACKWARD, size_bytes=1, seconds=1.0)
    problem = b.build([y], [g])
    relaxation = relax_fusion(problem)
    assert [s.size_bytes for s in relaxation.problem.storages] == [0, 0, 1, 10, 0, 1]
    assert [op.seconds for op in relaxation.problem.ops] == [
        0.5,
        1.0,
        0.5,
        1.0,
    ]  # late has no reader in the forward
    assert relaxation.optional == {2}  # it may be left to the backward, which makes it again
    assert solve(problem, 12).seconds == 3.5


def test_an_incumbent_is_beaten_or_given_back() -> None:
    problem = chain(6)
    slow = solve(problem, 600).plan
    assert slow is not None
    assert solve(problem, 800, incumbent=slow).seconds == 13.0
    assert solve(problem, 600, incumbent=slow) == Exact(slow, 18.0, 18.0, True)
    late = solve(problem, 700, incumbent=slow, time_limit_seconds=0.0)
    assert (late.plan, late.proved) == (slow, False)
    assert solve(problem, 599, incumbent=slow).plan is None


def test_a_plan_outside_of_the_space_can_stand_as_incumbent() -> None:
    problem = free_order()
    other = Plan((), (0, 1, 2, 3), (1, 2, 0, 4))
    assert solve(problem, 11, incumbent=other) == Exact(other, 8.0, 8.0, True)


def test_a_kept_output_is_replaced_by_its_op_running_again() -> None:
    """Once a pair runs again for its second result, readers of the first take the new one, beside the caller's."""
    b = Builder(fuses=False)
    x = b.input("x", 0)
    made = [b.value(f"pair.{n}", b.storage(f"pair.{n}", 10)) for n in range(2)]
    b.add(Op("pair", "pair", (x,), tuple(made), Kind.KERNEL, Phase.FORWARD, 1.0))
    z = b.op("z", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=5, seconds=1.0)
    g = b.op("g", [b.tangent("t", 0), made[1]], Kind.KERNEL, Phase.BACKWARD, seconds=1.0)
    end = b.op("end", [g, made[0], z], Kind.KERNEL, Phase.BACKWARD, size_bytes=6, seconds=1.0)
    problem = b.build([made[0]], [end])
    agree(problem, 0.2)
    for budget in range(20, 45):
        assert solve(problem, budget).seconds == best_seconds(problem, budget, in_order=True)


def test_a_view_of_the_backward_into_the_forward_is_refused() -> None:
    b = Builder(fuses=False)
    x = b.input("x", 0)
    y = b.op("y", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=1)
    view = b.op("view", [y, b.tangent("t", 0)], Kind.VIEW, Phase.BACKWARD)
    g = b.op("g", [view], Kind.KERNEL, Phase.BACKWARD)
    with pytest.raises(ValueError, match="view of the backward is a view of a value"):
        solve_exact(b.build([y], [g]), 10)


def test_what_a_view_needs_besides_is_made_in_the_forward_with_it() -> None:
    b = Builder(fuses=False)
    x = b.input("x", 0)
    y = b.op("y", [x], Kind.KERNEL, Phase.FORWARD)
    beside = b.op("beside", [x], Kind.KERNEL, Phase.EITHER, size_bytes=1, keep="random")
    view = b.op("view", [x, beside], Kind.VIEW, Phase.EITHER)
    last = b.op("last", [view], Kind.KERNEL, Phase.EITHER, keep="random")
    g = b.op("g", [b.tangent("t", 0), last], Kind.KERNEL, Phase.BACKWARD, seconds=1.0)
    problem = b.build([y], [g])
    assert lowest_peak(problem, in_order=True) == 1
    agree(problem, 0.0)


def test_what_a_view_reads_besides_may_be_fused_in_the_relaxation() -> None:
    b = Builder()
    x = b.input("x", 0)
    viewed = b.op("viewed", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=1, keep="random")
    beside = b.op("beside", [x], Kind.FUSIBLE, Phase.FORWARD, size_bytes=2, seconds=1.0, fused_seconds=0.5)
    view = b.op("view", [viewed, beside], Kind.VIEW, Phase.FORWARD)
    y = b.op("y", [beside], Kind.KERNEL, Phase.FORWARD)
    g = b.op("g", [b.tangent("t", 0), view], Kind.KERNEL, Phase.BACKWARD, seconds=1.0)
    problem = b.build([y], [g])
    relaxed = relax_fusion(problem).problem
    assert relaxed.ops[1].seconds == 0.5
    assert relaxed.storages[relaxed.values[beside].storage].size_bytes == 0


def test_what_the_forward_makes_for_nobody_there_costs_its_arithmetic_in_the_relaxation() -> None:
    b = Builder()
    x = b.input("x", 0)
    y = b.op("y", [x], Kind.KERNEL, Phase.FORWARD)
    h = b.op(
        "h",
        [x],
        Kind.FUSIBLE,
        Phase.FORWARD,
        size_bytes=1,
        seconds=0.5,
        fused_seconds=0.25,
        unsavable="example",
    )
    g = b.op("g", [b.tangent("t", 0), h], Kind.KERNEL, Phase.BACKWARD, seconds=1.0)
    problem = b.build([y], [g])
    (fastest, *_) = plan_frontier(problem).candidates
    assert (
        fastest.replay.seconds == 1.75
    )  # h for nobody in the forward, and again for the kernel of the backward
    assert solve(problem, fastest.replay.peak_bytes).bound_seconds <= 1.75
