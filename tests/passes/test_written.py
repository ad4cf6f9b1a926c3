"""Results that the backward writes out: one buffer in the place of those that it is computed from."""

from dataclasses import replace

import pytest

from graphremat.passes.frontier import judge
from graphremat.passes.plan import Plan, check_plan
from graphremat.passes.problem import Builder, Kind, Phase, Problem
from graphremat.passes.replay import replay
from graphremat.passes.schedule import schedule
from graphremat.passes.written import with_written, without_idle_writing, worth_writing


def around() -> Problem:
    """The backward of a residual block: ``sum`` is of two gradients and an activation, and read before and behind a
    kernel. Everything has 100 bytes but the loss."""
    build = Builder()
    x = build.input("x", 100)
    saved = build.op("saved", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=100)
    loss = build.op("loss", [saved], Kind.KERNEL, Phase.FORWARD)
    tangent = build.tangent("tangent", 0)
    through = build.op("through", [tangent], Kind.KERNEL, Phase.BACKWARD, size_bytes=100)
    beside = build.op("beside", [tangent], Kind.KERNEL, Phase.BACKWARD, size_bytes=100)
    total = build.op("sum", [through, beside, saved], Kind.FUSIBLE, Phase.BACKWARD, size_bytes=100)
    doubled = build.op("doubled", [total], Kind.FUSIBLE, Phase.BACKWARD, size_bytes=100)
    scaled = build.op("scaled", [doubled], Kind.FUSIBLE, Phase.BACKWARD, size_bytes=100)
    product = build.op("product", [scaled], Kind.KERNEL, Phase.BACKWARD, size_bytes=100)
    both = build.op("both", [total, product], Kind.FUSIBLE, Phase.BACKWARD, size_bytes=100)
    last = build.op("last", [both], Kind.KERNEL, Phase.BACKWARD, size_bytes=100)
    return build.build([loss], [last])


def plan_of(problem: Problem, *written: str) -> Plan:
    chosen = tuple(i for i, op in enumerate(problem.ops) if op.name in written)
    return replace(schedule(problem, [1]), written=chosen)


def test_what_is_written_out_stands_for_what_it_is_made_of() -> None:
    problem = around()
    assert [problem.ops[i].name for i in worth_writing(problem)] == ["sum", "both"]
    # While the product is made, beside x, its operand and its result: both gradients and the activation, or their sum.
    assert replay(problem, plan_of(problem)).peak_bytes == 100 + 300 + 200
    written = replay(problem, plan_of(problem, "sum"))
    assert written.peak_bytes == 100 + 300
    assert replay(with_written(problem, worth_writing(problem)), plan_of(problem)).peak_bytes == 100 + 300


def test_what_its_own_kernel_alone_reads_is_not_written_out() -> None:
    problem = around()
    needed = judge(problem, plan_of(problem, "sum"))
    assert without_idle_writing(problem, needed) is needed
    fewer = without_idle_writing(problem, judge(problem, plan_of(problem, "sum", "doubled")))
    assert fewer.plan == needed.plan
    assert fewer.replay.seconds == needed.replay.seconds


def test_a_plan_on_paper_says_what_it_writes_out() -> None:
    problem = around()
    plan = plan_of(problem, "sum")
    assert Plan.from_json(plan.to_json(problem)) == plan
    assert '"written": [\n  "sum"\n ]' in plan.to_json(problem)


def test_only_the_backward_writes_out() -> None:
    problem = around()
    with pytest.raises(ValueError, match="saved is not of the backward, and cannot be written out there"):
        check_plan(problem, plan_of(problem, "saved"))
