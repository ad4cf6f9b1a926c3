"""Read the joint graph: clean it, find out what each node is for, and what must not run twice. Knows FX.

Nothing is decided here. The result is a :class:`JointGraph` with side tables; nodes are not touched, except that the
marks which torch itself sets on a graph before it partitions (collectives, effects and mutated inputs are to be saved)
are set by torch's own functions.
"""

import operator
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
import torch.fx as fx

from graphremat.passes import torch_private as private
from graphremat.passes.garbage import garbage_left
from graphremat.passes.kinds import USER_KERNEL, NodeKind, classify_kind, replays_from_seed
from graphremat.passes.problem import Phase

MARKED = "marked to be saved"
TO_RECOMPUTE = "marked by the user to be recomputed"

OPAQUE = "opaque operator"
"""The reason to keep what an operator gives begins so where nothing is known of it."""

REPEATABLE = frozenset({"transformers::grouped_mm_fallback"})
"""Operators of libraries that compute and do nothing else, as their sources show; the user may name more."""


@dataclass(frozen=True, eq=False)
class JointGraph:
    """A joint forward and backward graph and what is known of its nodes."""

    module: fx.GraphModule
    num_forward_outputs: int
    info: private.NodeInfo
    phases: dict[fx.Node, Phase]
    keep: dict[fx.Node, str]
    """Why a node must not run a second time, in words; nodes that may are not in it."""
    unsavable: dict[fx.Node, str]
    """Why a node's result must not be saved; the user's annotations are such reasons."""
    repeatable: frozenset[str]
    """Operators that torch does not know but of which somebody has said that they may run again."""
    differentiates: bool
    """False for a graph whose backward needs nothing: there is nothing to plan."""


@garbage_left()
def read_joint_graph(
    module: fx.GraphModule,
    *,
    num_forward_outputs: int,
    static_lifetime_input_indices: list[int] | None,
    honour_annotations: bool = True,
    repeatable: Iterable[str] = (),
) -> JointGraph:
    """Clean the joint graph (dead code, common subexpressions) in place and classify its nodes.

    Args:
        module: the graph.
        num_forward_outputs: of its outputs, the first so many are the forward's.
        static_lifetime_input_indices: inputs that stay where they are, parameters say.
        honour_annotations: whether to do what the user has marked.
        repeatable: operators (``"namespace::name"``) that may run again besides torch's own and :data:`REPEATABLE`.
    """
    safe = REPEATABLE.union(repeatable)
    module.graph.eliminate_dead_code()
    module.graph = private.fx_graph_cse(module.graph)
    memory_read = read_by_memory(module.graph)
    if not honour_annotations:
        _forget_annotations(module.graph)
    if private.has_recomputable_ops(module):
        private.cleanup_recompute_tags(module, is_default_partition=False)
    private.force_save_collectives(module)
    private.force_save_effectful_ops(module)
    private.force_save_backward_mutation_source(module)
    info = private.classify_nodes(module, static_lifetime_input_indices or [], num_forward_outputs)
    phases = {
        node: Phase.FORWARD
        if info.is_required_fw(node)
        else Phase.BACKWARD
        if node in info.tangents_closure
        else Phase.EITHER
        for node in module.graph.nodes
        if node.op != "output"
    }
    mutated = private.mutated_inputs(module.graph)
    overwritten = {node for node in module.graph.find_nodes(op="placeholder") if node.name in mutated}
    keep: dict[fx.Node, str] = {}
    unsavable: dict[fx.Node, str] = {}
    for node in module.graph.nodes:
        if node.op != "call_function" or phases[node] is Phase.BACKWARD:
            continue
        if private.must_recompute(node):
            unsavable[node] = TO_RECOMPUTE
            continue
        reason = keep_reason(node, safe)
        if reason == MARKED and classify_kind(node) is NodeKind.VIEW:
            base = _base_of(node)  # a view may run again: what is saved is its memory
            if base.op == "call_function":
                keep.setdefault(base, reason)
                if unsavable.get(base) == TO_RECOMPUTE:
                    del unsavable[base]
            continue
        if not reason and any(operand in overwritten for operand in node.all_input_nodes):
            if classify_kind(node) is NodeKind.VIEW:
                overwritten.add(node)
            else:
                reason = "reads an input that the forward overwrites"
        if reason:
            keep[node] = reason
        if node in memory_read:
            unsavable[node] = (
                "as_strided reads its memory, which a compiler may lay out otherwise once it is saved"
            )
    return JointGraph(
        module,
        num_forward_outputs,
        info,
        phases,
        keep,
        unsavable,
        safe,
        differentiates=bool(info.required_bw_nodes),
    )


def read_by_memory(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose memory an ``as_strided`` reads.

    ``as_strided`` counts elements in memory, by the layout that was traced. A value that is saved may reach the
    backward in another one, where it would be copied for the ``as_strided`` (:mod:`graphremat.passes.buffers`) or, by
    another compiler, read at the wrong places. Group normalization has one behind its statistics.
    """
    found: set[fx.Node] = set()
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.as_strided.default):
        found.add(_viewed(node.args[0]))
    return found


def _viewed(node: fx.Node) -> fx.Node:
    """What a view, or a view of a view, looks at; the node itself if it is none."""
    while node.op == "call_function" and classify_kind(node) is NodeKind.VIEW:
        node = node.all_input_nodes[0]
    return node


def _base_of(view: fx.Node) -> fx.Node:
    """The node that makes what a view looks at."""
    base = _viewed(view)
    return base.all_input_nodes[0] if base.target is operator.getitem else base


def keep_reason(node: fx.Node, repeatable: Collection[str] = REPEATABLE) -> str:
    """Why this node must not run again in the backward; empty if it may.

    Random ops would draw again, collectives and effects would be seen twice, mutations would be applied twice, and
    what an opaque operator does is not known unless it is ``repeatable``. What the user marked to be recomputed is not
    asked here.
    """
    if node.meta.get("recompute") == torch.utils.checkpoint.CheckpointPolicy.MUST_SAVE:
        return MARKED
    return effect_of(node, repeatable)


def effect_of(node: fx.Node, repeatable: Collection[str] = REPEATABLE) -> str:
    """What running this node a second time would do, in words, whatever the user has marked; empty if nothing."""
    target = node.target
    if isinstance(target, private.OpOverload):
        if classify_kind(node) is NodeKind.RANDOM and not replays_from_seed(node):
            return "random: it would draw again"
        if target._schema.is_mutable:
            return "mutates an operand"
        if target.namespace in ("_c10d_functional", "c10d", "_dtensor"):
            return "collective"
        if not private.is_builtin_operator(target) and target._schema.name not in repeatable:
            return f"{OPAQUE}: it may have effects unless {target._schema.name} is said to be repeatable"
        return ""
    if isinstance(target, private.HigherOrderOperator):
        return "" if target.name() in _PURE_HIGHER_ORDER else "higher order operator"
    return ""


_PURE_HIGHER_ORDER = frozenset({"flex_attention", USER_KERNEL})
"""What a kernel of the user's own writes is given to it as copies here, so that running it again gives the same."""


def _forget_annotations(graph: fx.Graph) -> None:
    """Drop what the user said of checkpoints: what is to be recomputed or saved, and the budget of a region."""
    for node in graph.nodes:
        node.meta.pop("recompute", None)
        custom = node.meta.get("custom")
        if isinstance(custom, dict) and private.REGION_BUDGET_KEY in custom:
            node.meta["custom"] = {k: v for k, v in custom.items() if k != private.REGION_BUDGET_KEY}
