"""Checks between the stages: the problem against the joint graph, the two graphs against the plan. Knows FX."""

from collections import Counter

import torch.fx as fx

from graphremat.passes import torch_private as private
from graphremat.passes.build import Index
from graphremat.passes.classify import JointGraph, effect_of
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Kind, Problem


def check_aliases(problem: Problem, index: Index) -> None:
    """Raise ValueError unless what an operator's schema calls a view lies in the storage of an operand.

    Bytes would be counted twice otherwise, and a storage thought free while something looks at it.
    """
    for op, node in zip(problem.ops, index.op_node, strict=True):
        if not op.reads or not getattr(node.target, "is_view", False):
            continue
        if op.kind is Kind.FUSIBLE:  # a part: it has bytes of its own only where it is written out
            continue
        if not {problem.values[v].storage for v in op.writes} <= {
            problem.values[v].storage for v in op.reads
        }:
            raise ValueError(f"{op.name} is a view, but has bytes of its own in the problem")


def check_split(
    index: Index,
    plan: Plan,
    forward: fx.GraphModule,
    backward: fx.GraphModule,
    joint: JointGraph,
) -> None:
    """Raise ValueError unless the graphs do what the plan says and no more.

    What the backward takes is given out by the forward or comes from outside; what must not run twice runs once, and
    nothing with effects more often than in the joint graph unless the user asked for that; and the backward runs the
    plan's ops in the plan's order.
    """
    given = {node.name for node in forward.graph.output_node().all_input_nodes}
    for node in backward.graph.find_nodes(op="placeholder"):
        if node.name not in given and not _from_outside(node):
            raise ValueError(f"the backward takes {node.name}, which the forward does not give out")
    once = {node.name for node, reason in joint.keep.items() if reason}
    # a second run of one op may have the name that another op has in the joint graph
    runs = Counter(
        n.meta.get(private.SOURCE_OP, n.name)
        for g in (forward, backward)
        for n in g.graph.nodes
        if n.op == "call_function"
    )
    for name in sorted(once):
        if runs[name] > 1:
            raise ValueError(f"{name} runs twice, but must not")
    before = _with_effects(joint.module, joint.repeatable)
    asked = {node.target for node in joint.module.graph.nodes if private.must_recompute(node)}
    after = _with_effects(forward, joint.repeatable) + _with_effects(backward, joint.repeatable)
    for target, times in after.items():
        if times > before[target] and target not in asked:
            raise ValueError(
                f"{target} draws or changes something, and runs {times} times for {before[target]}"
            )
    _check_order(index, plan, backward)


def _with_effects(module: fx.GraphModule, repeatable: frozenset[str]) -> Counter[object]:
    """How often each operator runs that draws random numbers, writes over an operand or may have another effect.

    Higher-order operators are left out: what the user marked to be drawn again runs inside some, with its state kept.
    """
    calls = (n for n in module.graph.nodes if n.op == "call_function")
    return Counter(
        n.target for n in calls if isinstance(n.target, private.OpOverload) and effect_of(n, repeatable)
    )


def _from_outside(node: fx.Node) -> bool:
    name = str(node.target)
    return (
        "tangents" in name or "rng" in name or "offset" in name or "seed" in name or private.is_sym_node(node)
    )


def _check_order(index: Index, plan: Plan, backward: fx.GraphModule) -> None:
    wanted = iter([index.op_node[op].target for op in plan.backward if not index.views[op]])
    for node in backward.graph.nodes:
        if node.op != "call_function" or node.target not in index.targets:
            continue
        if not any(target == node.target for target in wanted):
            raise ValueError(f"{node.name} of the backward does not stand where the plan has it")
