"""Where runs stand in the drawn graph, and what they read, against a second, naive account."""

from hypothesis import assume, given

from graphremat.passes.cut import CutGraph, NoCut
from graphremat.passes.problem import Problem
from graphremat.passes.schedule import schedule
from graphremat.passes.testing import chain
from graphremat.report_graph import MOST_LANES, places, run_reads
from tests.passes.problems import problems


@given(problems())
def test_reads_are_of_the_latest_run(problem: Problem) -> None:
    try:
        cut = CutGraph(problem).solve(0.0)
    except NoCut:
        assume(False)
    plan = schedule(problem, cut.saved)
    sequence, split = (*plan.forward, *plan.backward), len(plan.forward)
    for position, reads in enumerate(run_reads(problem, plan)):
        wanted = []
        for value in problem.ops[sequence[position]].reads:
            makers = [
                p
                for p in range(position)
                if value in problem.ops[sequence[p]].writes
                and (position < split or p >= split or value in plan.saved)
            ]
            wanted += makers[-1:] if problem.values[value].producer >= 0 else []
            assert makers or problem.values[value].producer < 0
        assert sorted(reads) == sorted(set(wanted))


def test_no_two_runs_stand_in_one_place_and_halves_stay_apart() -> None:
    problem = chain(40, internal=2)
    plan = schedule(problem, [])
    split = len(plan.forward)
    found = places(run_reads(problem, plan), split)
    assert len(set(found)) == len(found)
    assert {y > 0 for _, y in found[:split]} == {True}
    assert {y < 0 for _, y in found[split:]} == {True}
    xs = [x for x, _ in found]
    assert xs[:split] == sorted(xs[:split])
    assert xs[split:] == sorted(xs[split:], reverse=True)
    assert max(xs[split:]) == max(xs[:split])
    assert min(xs[split:]) == 0 == xs[0]


def test_a_value_that_is_read_later_keeps_its_lane() -> None:
    reads = [[], [0], [1], [2, 0]]  # a residual connection around two ops
    assert [y for _, y in places(reads, 4)] == [1, 2, 2, 1]


def test_lanes_are_bounded() -> None:
    many = 3 * MOST_LANES
    reads: list[list[int]] = [[] for _ in range(many)] + [[p] for p in reversed(range(many))]
    assert {y for _, y in places(reads, len(reads))} == set(range(1, MOST_LANES + 1))
