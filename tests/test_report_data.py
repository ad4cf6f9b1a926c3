"""The data of a report's page, against the replay and against what the plan says."""

import json
from dataclasses import replace
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from graphremat.passes.cut import CutGraph, NoCut
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Builder, Holder, Kind, Phase, Problem
from graphremat.passes.replay import replay
from graphremat.passes.schedule import schedule
from graphremat.passes.testing import chain
from graphremat.report_data import FATES, HELD, ShownStep, page_data
from tests.pages import alive_bytes
from tests.passes.problems import problems


def shown(problem: Problem, plan: Plan) -> ShownStep:
    return ShownStep("a step", problem, plan, replay(problem, plan), (), 0, 0, None, None)


@given(problems(), st.booleans(), st.sampled_from([0.0, 1e-3, 1.0]))
def test_what_is_alive_sums_to_the_curve_of_the_replay(problem: Problem, groups: bool, price: float) -> None:
    problem = replace(problem, groups=groups and problem.fuses)
    try:
        cut = CutGraph(problem).solve(price)
    except NoCut:
        assume(False)
    step = shown(problem, schedule(problem, cut.saved))
    data = json.loads(json.dumps(page_data(step), allow_nan=False))
    assert [alive_bytes(data, p) for p in range(len(step.run.curve))] == step.run.curve.tolist()
    assert sum(data["modules"]["saved_bytes"]) == step.run.saved_bytes
    assert abs(sum(data["modules"]["recompute_seconds"]) - step.run.recompute_seconds) < 1e-9
    assert sum(data["modules"]["recomputed_count"]) == len(step.plan.recomputed(problem))


def test_a_kernel_that_writes_over_its_operand_is_counted_once() -> None:
    b = Builder()
    x = b.input("x", 1)
    h = b.op("h", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=10)
    p = b.op("p", [h], Kind.FUSIBLE, Phase.FORWARD, size_bytes=10)
    y = b.op("y", [p], Kind.KERNEL, Phase.FORWARD, size_bytes=2)
    t = b.tangent("t", 0)
    g = b.op("g", [t, y], Kind.KERNEL, Phase.BACKWARD, size_bytes=4)
    problem = b.build([y], [g])
    data = page_data(shown(problem, Plan((y,), (0, 1, 2), (3,))))
    lifetimes = dict(
        zip(
            data["buffers"]["name"],
            zip(data["buffers"]["from"], data["buffers"]["to"], strict=True),
            strict=True,
        )
    )
    assert lifetimes == {"h": (0, 0), "p": (1, 2), "y": (2, 3), "g": (3, 3)}
    assert [alive_bytes(data, position) for position in range(4)] == [11, 11, 13, 7]


def named(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and fates of the runs, in their order."""
    ops, runs = data["ops"], data["runs"]
    return [(ops["name"][op], FATES[fate][0]) for op, fate in zip(runs["op"], runs["fate"], strict=True)]


def test_every_run_has_its_fate_and_every_buffer_what_it_is_held_for() -> None:
    problem = chain(length=3, gradient_bytes=7)
    plan = schedule(problem, [problem.ops[0].writes[0]])
    data = page_data(shown(problem, plan))
    assert named(data) == [
        ("layer0", "saved"),
        ("layer1", "dropped"),
        ("layer2", "outputs"),
        ("layer1", "again"),
        ("weight2", "gradients"),
        ("grad2_0", "plain"),
        ("weight1", "gradients"),
        ("grad1_0", "plain"),
        ("weight0", "gradients"),
        ("grad0_0", "gradients"),
    ]
    held = [HELD[number][0] for number in data["buffers"]["held"]]
    assert list(zip(data["buffers"]["name"], held, strict=True)) == [
        ("layer0", "saved"),
        ("layer1", "temporaries"),
        ("layer2", "outputs"),
        ("layer1", "again"),
        ("weight2", "gradients"),
        ("grad2_0", "temporaries"),
        ("weight1", "gradients"),
        ("grad1_0", "temporaries"),
        ("weight0", "gradients"),
        ("grad0_0", "gradients"),
    ]


def test_reasons_are_told() -> None:
    b = Builder(fuses=False)
    x = b.input("x", 1)
    drawn = b.op("drawn", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=8, keep="random")
    token = b.op(
        "token", [drawn], Kind.KERNEL, Phase.FORWARD, size_bytes=8, unsavable="marked", seconds=0.002
    )
    seen = b.op("seen", [token], Kind.VIEW, Phase.FORWARD)
    y = b.op("y", [seen], Kind.KERNEL, Phase.FORWARD, size_bytes=2)
    t = b.tangent("t", 0)
    g = b.op("g", [t, seen, drawn], Kind.KERNEL, Phase.BACKWARD, size_bytes=4)
    problem = b.build([y], [g])
    data = page_data(shown(problem, schedule(problem, [drawn])))
    why = {}
    for op, text in zip(data["runs"]["op"], data["runs"]["why"], strict=True):
        why.setdefault(data["ops"]["name"][op], data["strings"][text])
    assert why["drawn"] == "must not run again: random"
    assert why["token"] == "making it again takes 2.000 ms; it cannot be saved: marked"
    assert why["seen"] == "a view: no bytes of its own"


def test_the_page_grows_with_the_ops_and_not_with_their_square() -> None:
    def length(layers: int) -> int:
        problem = chain(layers)
        return len(json.dumps(page_data(shown(problem, schedule(problem, [])))))

    assert length(1600) < 2.2 * length(800)


def test_engine_and_caller_own_no_buffers() -> None:
    problem = chain(3)
    data = page_data(shown(problem, schedule(problem, [])))
    owned = {storage.name for storage in problem.storages if storage.holder is Holder.GRAPH}
    assert set(data["buffers"]["name"]) <= owned
    assert data["engine_bytes"] == 100
