"""Dividing a budget among graphs: against trying every choice."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphremat.share import Alternative, Call, peaks, rooms, share

alternatives = st.builds(
    Alternative, st.integers(1, 50), st.integers(0, 30), st.sampled_from((1.0, 2.0, 3.5, 7.0))
)


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[Call], dict[str, list[Alternative]], int]:
    plans = {name: draw(st.lists(alternatives, min_size=1, max_size=4)) for name in ("a", "b", "c")}
    names = draw(st.lists(st.sampled_from(sorted(plans)), min_size=1, max_size=6))
    calls = [Call(name, draw(st.integers(0, 20))) for name in names]
    return calls, {name: plans[name] for name in sorted(set(names))}, draw(st.integers(1, 200))


@given(steps())
def test_the_division_is_the_fastest_that_fits(
    step: tuple[list[Call], dict[str, list[Alternative]], int],
) -> None:
    calls, plans, budget = step
    fitting = []
    for places in itertools.product(*(range(len(found)) for found in plans.values())):
        chosen = dict(zip(plans, places, strict=True))
        if max(peaks(calls, plans, chosen)) <= budget:
            fitting.append(sum(plans[c.graph][chosen[c.graph]].seconds for c in calls))
    best = share(calls, plans, budget)
    assert (best is None) == (not fitting)
    if best is not None:
        assert max(peaks(calls, plans, best)) <= budget
        assert sum(plans[c.graph][best[c.graph]].seconds for c in calls) == pytest.approx(min(fitting))
        for graph, room in rooms(calls, plans, best, budget).items():
            assert room >= plans[graph][best[graph]].peak_bytes


def test_what_a_call_saves_counts_in_later_ones() -> None:
    plans = {"a": [Alternative(50, 40, 1.0)], "b": [Alternative(30, 5, 1.0)]}
    calls = [Call("a", 10), Call("b", 0), Call("b", 7)]
    assert peaks(calls, plans, {"a": 0, "b": 0}) == [60, 70, 82]
    assert rooms(calls, plans, {"a": 0, "b": 0}, 100) == {"a": 90, "b": 48}
