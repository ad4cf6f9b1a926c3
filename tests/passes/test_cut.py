"""Cuts against brute force over every choice of saved values, and between the two engines."""

import itertools

import pytest
from hypothesis import given, settings

from graphremat.passes.cut import INFINITE, CutGraph, NoCut, recompute_seconds, solve_networkx, varied_cuts
from graphremat.passes.problem import Builder, Holder, Kind, Phase, Problem
from graphremat.passes.schedule import ScheduleError, schedule
from tests.passes.problems import problems


def every_choice(problem: Problem) -> list[tuple[float, int]]:
    """(recompute seconds, saved bytes) of every set of saved values that works."""
    held = {problem.base[v] for v in problem.forward_outputs}
    candidates = [
        v.producer >= 0
        and problem.ops[v.producer].phase is not Phase.BACKWARD
        and problem.ops[v.producer].kind is not Kind.VIEW
        and not problem.ops[v.producer].unsavable
        and problem.storages[v.storage].holder is Holder.GRAPH
        for v in problem.values
    ]
    values = [i for i, c in enumerate(candidates) if c]
    seconds = recompute_seconds(problem)
    found = []
    for size in range(len(values) + 1):
        for saved in itertools.combinations(values, size):
            try:
                plan = schedule(problem, saved)
            except ScheduleError:
                continue
            storages = {problem.values[v].storage for v in saved if v not in held}
            saved_bytes = sum(problem.storages[s].size_bytes for s in storages)
            again = {i for i in plan.backward if problem.ops[i].phase is not Phase.BACKWARD}
            found.append((sum(seconds[i] for i in again), saved_bytes))
    return found


@settings(deadline=None, max_examples=60)
@given(problems(longest=6, fuses=False))
def test_every_price_is_the_optimum(problem: Problem) -> None:
    choices = every_choice(problem)
    graph = CutGraph(problem)
    if not choices:
        with pytest.raises(NoCut):
            graph.solve(1.0)
        return
    for price in (0.0, 0.03, 0.2, 1.0, 7.0):
        cut = graph.solve(price)
        best = min(seconds + price * size for seconds, size in choices)
        assert cut.seconds + price * cut.saved_bytes == pytest.approx(best, abs=1e-9)
    least = graph.solve(INFINITE)
    assert (least.saved_bytes, pytest.approx(least.seconds)) == min((b, s) for s, b in choices)


@settings(deadline=None, max_examples=40)
@given(problems())
def test_engines_agree_and_the_hull_is_convex(problem: Problem) -> None:
    try:
        hull = CutGraph(problem).hull()
    except NoCut:
        with pytest.raises(NoCut):
            CutGraph(problem, solver=solve_networkx).solve(1.0)
        return
    reference = CutGraph(problem, solver=solve_networkx).hull()
    assert [c.saved_bytes for c in hull] == [c.saved_bytes for c in reference]
    assert [c.seconds for c in hull] == pytest.approx([c.seconds for c in reference])
    slopes = [(b.seconds - a.seconds) / (a.saved_bytes - b.saved_bytes) for a, b in itertools.pairwise(hull)]
    assert slopes == sorted(slopes)


def test_the_way_that_cannot_be_cut_is_told() -> None:
    b = Builder()
    x = b.input("x", 1)
    mask = b.op("mask", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=4, keep="random: it would draw again")
    view = b.op("view", [mask], Kind.VIEW, Phase.FORWARD)
    marked = b.op("marked", [view], Kind.KERNEL, Phase.FORWARD, size_bytes=4, unsavable="marked by the user")
    t = b.tangent("t", 1)
    g = b.op("g", [t, marked], Kind.KERNEL, Phase.BACKWARD, size_bytes=1)
    problem = b.build([marked], [g])
    saved = CutGraph(problem).solve(1.0).saved
    assert saved == (mask,)
    b = Builder()
    x = b.input("x", 1)
    both = b.op(
        "both",
        [x],
        Kind.KERNEL,
        Phase.FORWARD,
        size_bytes=4,
        keep="collective",
        unsavable="marked by the user",
    )
    y = b.op("y", [both], Kind.KERNEL, Phase.FORWARD, size_bytes=1)
    t = b.tangent("t", 1)
    g = b.op("g", [t, both], Kind.KERNEL, Phase.BACKWARD, size_bytes=1)
    with pytest.raises(
        NoCut, match=r"both must not run again: collective; both cannot be saved: marked by the user; g"
    ):
        CutGraph(b.build([y], [g])).solve(1.0)


def test_cuts_of_light_ops_lie_where_no_price_leads() -> None:
    """A heavy op, dearer a byte than nothing kept: the hull goes past the point that recomputes the light one alone."""
    b = Builder()
    x = b.input("x", 10)
    heavy = b.op("heavy", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=100, seconds=10.0)
    light = b.op("light", [x], Kind.FUSIBLE, Phase.FORWARD, size_bytes=50, seconds=8.0, fused_seconds=8.0)
    y = b.op("y", [heavy, light], Kind.KERNEL, Phase.FORWARD, size_bytes=1, seconds=1.0)
    t = b.tangent("t", 1)
    problem = b.build([y], [b.op("g", [t, heavy, light], Kind.KERNEL, Phase.BACKWARD, size_bytes=1)])
    hull = {cut.saved for cut in CutGraph(problem).hull()}
    assert hull == {(heavy, light), (light,), ()}
    assert {cut.saved for cut in varied_cuts(problem, 64)} == {*hull, (heavy,)}


@settings(deadline=None, max_examples=40)
@given(problems())
def test_varied_cuts_hold_the_hull_and_choices_that_work(problem: Problem) -> None:
    try:
        hull = CutGraph(problem).hull()
    except NoCut:
        with pytest.raises(NoCut):
            varied_cuts(problem, 64)
        return
    varied = varied_cuts(problem, 64)
    assert varied[: len(hull)] == hull
    for cut in varied:
        schedule(problem, cut.saved)  # raises if it does not work
