"""The replay against a second, naive account of the same plan."""

import pytest
from hypothesis import assume, given

from graphremat.passes.cut import CutGraph, NoCut
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Builder, Holder, Kind, Phase, Problem
from graphremat.passes.replay import ReplayError, replay
from graphremat.passes.schedule import schedule
from tests.passes.problems import problems


def naive_curve(problem: Problem, plan: Plan) -> list[int]:
    """Alive bytes at every op, found by asking at every op who will still read what. No fusion."""
    sequence = [*plan.forward, *plan.backward]
    split = len(plan.forward)
    ops, values = problem.ops, problem.values
    outputs = {values[v].storage for v in problem.forward_outputs}
    gradients = {values[v].storage for v in problem.backward_outputs}

    def made_at(storage: int, before: int) -> int | None:
        for position in range(before, -1, -1):
            op = ops[sequence[position]]
            if op.kind is not Kind.VIEW and any(values[w].storage == storage for w in op.writes):
                return position
        return None

    curve = []
    for now in range(len(sequence)):
        alive = sum(s.size_bytes for s in problem.storages if s.holder is Holder.CALLER)
        alive += ops[sequence[now]].scratch_bytes
        if now >= split:
            alive += sum(s.size_bytes for s in problem.storages if s.holder is Holder.ENGINE)
        for storage, block in enumerate(problem.storages):
            if block.holder is not Holder.GRAPH:
                continue
            instances = {p for p in range(now + 1) if made_at(storage, p) == p}
            for made in sorted(instances):
                again = [p for p in range(made + 1, len(sequence)) if made_at(storage, p) == p]
                end = again[0] if again else len(sequence)
                used = any(
                    values[r].storage == storage
                    for p in range(max(now, made + 1), end + (end < len(sequence)))
                    if ops[sequence[p]].kind is not Kind.VIEW
                    for r in ops[sequence[p]].reads
                )
                last = not again
                held = (storage in outputs and made < split) or (storage in gradients and last)
                if made == now or used or held:
                    alive += block.size_bytes
        curve.append(alive)
    return curve


@given(problems(fuses=False, longest=6))
def test_equals_the_naive_account(problem: Problem) -> None:
    try:
        cuts = CutGraph(problem).hull(4)
    except NoCut:
        assume(False)
    for cut in cuts:
        plan = schedule(problem, cut.saved)
        assert replay(problem, plan).curve.tolist() == naive_curve(problem, plan)


@given(problems(fuses=True))
def test_fusion_never_adds_seconds_nor_negative_bytes(problem: Problem) -> None:
    try:
        cut = CutGraph(problem).solve(0.0)
    except NoCut:
        assume(False)
    run = replay(problem, schedule(problem, cut.saved))
    assert run.seconds <= problem.step_seconds + sum(op.seconds for op in problem.ops)
    assert (run.curve >= problem.input_bytes).all()
    assert run.peak_bytes == run.curve.max()


def _two_readers() -> tuple[Problem, int, int]:
    b = Builder()
    x = b.input("x", 1)
    h = b.op("h", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=10)
    p = b.op("p", [h], Kind.FUSIBLE, Phase.FORWARD, size_bytes=10)
    y = b.op("y", [p], Kind.REDUCTION, Phase.FORWARD, size_bytes=1)
    t = b.tangent("t", 0)
    g = b.op("g", [t, h], Kind.KERNEL, Phase.BACKWARD, size_bytes=2)
    return b.build([y], [g]), h, p


def test_a_pointwise_value_read_by_fusible_ops_has_no_bytes() -> None:
    problem, h, p = _two_readers()
    assert replay(problem, Plan((h,), (0, 1, 2), (3,))).curve.tolist() == [11, 11, 12, 14]
    storages = {s for s, _, _ in replay(problem, Plan((h,), (0, 1, 2), (3,))).lifetimes}
    assert problem.values[p].storage not in storages


def test_reading_what_is_not_alive_is_refused() -> None:
    problem, *_ = _two_readers()
    with pytest.raises(ReplayError, match="g in the backward reads h, which is not alive"):
        replay(problem, Plan((), (0, 1, 2), (3,)))
    with pytest.raises(ReplayError, match="the gradient g is not alive"):
        replay(problem, Plan((), (0, 1, 2), ()))


def test_a_value_made_twice_lives_twice() -> None:
    b = Builder(fuses=False)
    x = b.input("x", 1)
    h = b.op("h", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=10, seconds=1.0)
    y = b.op("y", [h], Kind.KERNEL, Phase.FORWARD, size_bytes=1)
    t = b.tangent("t", 0)
    g1 = b.op("g1", [t, h], Kind.KERNEL, Phase.BACKWARD, size_bytes=1)
    g2 = b.op("g2", [g1], Kind.KERNEL, Phase.BACKWARD, size_bytes=1)
    g3 = b.op("g3", [g2, h], Kind.KERNEL, Phase.BACKWARD, size_bytes=1)
    problem = b.build([y], [g3])
    once = replay(problem, Plan((), (0, 1), (0, 2, 3, 4)))
    twice = replay(problem, Plan((), (0, 1), (0, 2, 3, 0, 4)))
    assert once.curve.tolist() == [11, 12, 12, 13, 14, 14]
    assert twice.curve.tolist() == [11, 12, 12, 13, 4, 13, 14]
    assert twice.recompute_seconds == 2.0
