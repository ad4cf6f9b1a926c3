"""Faults planted between the stages are caught by the checks, each by its name."""

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.fx as fx
from torch import nn

import graphremat
from graphremat import candidates, plans
from graphremat.choose import Choice
from graphremat.passes import build
from graphremat.passes.plan import Plan, check_plan
from graphremat.passes.problem import Builder, Kind, Phase, Problem
from graphremat.passes.replay import ReplayError, replay

Graphs = tuple[fx.GraphModule, fx.GraphModule]


def compile_with(
    monkeypatch: pytest.MonkeyPatch,
    tamper: Callable[[fx.GraphModule], None],
    layers: Sequence[nn.Module] = (),
    **options: object,
) -> None:
    """Compile a small network, with further layers, whose backward graph is tampered with after the split."""
    split = candidates.split_joint_graph

    def broken(*arguments: object) -> Graphs:
        forward, backward = split(*arguments)  # type: ignore[arg-type]
        tamper(backward)
        backward.recompile()
        return forward, backward

    def take_last(replayed: Sequence[int], truth: Callable[[int], int], *_: object, **__: object) -> Choice:
        last = len(replayed) - 1
        return Choice(last, None, True, {last: truth(last)})

    monkeypatch.setattr(candidates, "split_joint_graph", broken)
    monkeypatch.setattr(plans, "choose", take_last)
    torch.compiler.reset()
    parts = (part for _ in range(4) for part in (nn.Linear(16, 16), nn.Tanh()))
    model = nn.Sequential(*parts, *layers, nn.Linear(16, 16), nn.Tanh())
    run = torch.compile(
        model,
        backend="graphremat",
        options={"lowering": "aot_eager", "memory_budget": 0.0, "on_failure": "error", **options},
    )
    run(torch.randn(64, 16)).sum().backward()


def test_an_untouched_split_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_with(monkeypatch, lambda backward: None)


def test_a_value_that_the_forward_does_not_give_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(backward: fx.GraphModule) -> None:
        for node in backward.graph.find_nodes(op="placeholder"):
            if "tanh" in node.name:
                node.name = "nowhere"
                node.target = "nowhere"
                return

    with pytest.raises(graphremat.VerificationError, match=r"stage 'verify'.*takes nowhere|nowhere"):
        compile_with(monkeypatch, rename)


def run_once_more(backward: fx.GraphModule) -> None:
    """Repeat the first matrix product behind everything else, where the plan has none, and give its result out."""
    product = next(iter(backward.graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default)))
    output = backward.graph.output_node()
    with backward.graph.inserting_before(output):
        again = backward.graph.node_copy(product)
    output.args = (tuple(again if n is product else n for n in output.args[0]),)


def test_an_op_that_the_plan_does_not_have_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        graphremat.PlanningError, match=r"stage 'verify'.*does not stand where the plan has it"
    ):
        compile_with(monkeypatch, run_once_more)


def run_in_the_backward(target: object, name: str, *arguments: object) -> Callable[..., None]:
    """Put an operator of the forward behind the backward's, on the gradient, and give its result out."""

    def tamper(backward: fx.GraphModule) -> None:
        output = backward.graph.output_node()
        gradient = next(n for n in output.args[0] if n is not None)
        with backward.graph.inserting_before(output):
            node = backward.graph.call_function(target, (gradient, *arguments))
            node.name = name
        output.args = ((*output.args[0], node),)

    return tamper


@pytest.mark.parametrize(
    ("layer", "tamper", "message"),
    [
        (
            nn.Dropout(0.5),
            run_in_the_backward(torch.ops.aten.native_dropout.default, "native_dropout", 0.5, True),
            "native_dropout runs twice, but must not",
        ),
        (
            nn.Dropout(0.5),
            run_in_the_backward(torch.ops.aten.native_dropout.default, "another_name", 0.5, True),
            r"aten\.native_dropout\.default draws or changes something, and runs 2 times for 1",
        ),
        (
            nn.BatchNorm1d(16),
            run_in_the_backward(torch.ops.aten.copy_.default, "copy_", 1.0),
            r"aten\.copy_\.default draws or changes something, and runs 1 times for 0",
        ),
    ],
    ids=["a redrawn mask", "a redrawn mask under another name", "a repeated mutation"],
)
def test_what_must_not_run_again_is_caught(
    monkeypatch: pytest.MonkeyPatch, layer: nn.Module, tamper: Callable[..., None], message: str
) -> None:
    with pytest.raises(graphremat.VerificationError, match=message):
        compile_with(monkeypatch, tamper, [layer])


def test_a_second_run_may_have_the_name_of_another_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """FX numbers names by what a graph has: a copy of ``add_1`` in the backward was once ``add_10``, of which the
    forward had its own that must not run again, and the plan was refused."""
    renamed = []

    def rename(backward: fx.GraphModule) -> None:
        again = backward.graph.find_nodes(op="call_function", target=torch.ops.aten.tanh.default)
        renamed.append(again[0].name)
        again[0].name = "native_dropout"

    compile_with(monkeypatch, rename, [nn.Dropout(0.5)])
    assert renamed


def test_a_missing_alias_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = build.problem_kind

    def blind(node: fx.Node, **how: bool) -> Kind:
        return Kind.KERNEL if node.target is torch.ops.aten.t.default else real(node, **how)

    monkeypatch.setattr(build, "problem_kind", blind)
    with pytest.raises(graphremat.VerificationError, match="t is a view, but has bytes of its own"):
        compile_with(monkeypatch, lambda backward: None)


def test_what_is_caught_does_not_stop_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="VerificationError: stage 'verify'"):
        compile_with(monkeypatch, run_once_more, on_failure="fallback")


def test_checks_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_with(monkeypatch, run_once_more, verify=False)


def with_mask() -> tuple[Problem, int, int]:
    b = Builder()
    x = b.input("x", 1)
    mask = b.op("mask", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=4, keep="random: it would draw again")
    y = b.op("y", [mask], Kind.KERNEL, Phase.FORWARD, size_bytes=4)
    t = b.tangent("t", 1)
    g = b.op("g", [t, mask], Kind.KERNEL, Phase.BACKWARD, size_bytes=1)
    return b.build([y], [g]), mask, y


def test_a_redrawn_mask_is_caught() -> None:
    problem, mask, _ = with_mask()
    check_plan(problem, Plan((mask,), (0, 1), (2,)))
    with pytest.raises(ValueError, match="mask runs twice, but must not: random"):
        check_plan(problem, Plan((), (0, 1), (0, 2)))


def test_a_freed_value_is_caught() -> None:
    problem, *_ = with_mask()
    with pytest.raises(ReplayError, match="g in the backward reads mask"):
        replay(problem, Plan((), (0, 1), (2,)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forward": (0, 0, 1)}, "stands twice"),
        ({"forward": (0, 1, 2)}, "backward op g stands in the forward"),
        ({"forward": (0,)}, "forward op y never runs"),
        ({"backward": ()}, "backward op g never runs"),
        ({"backward": (2, 2)}, "runs twice"),
    ],
)
def test_a_plan_that_breaks_a_rule_is_caught(change: dict[str, tuple[int, ...]], message: str) -> None:
    problem, mask, _ = with_mask()
    with pytest.raises(ValueError, match=message):
        check_plan(problem, dataclasses.replace(Plan((mask,), (0, 1), (2,)), **change))
