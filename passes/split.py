"""Act on a plan: the forward and the backward graph, with recomputation where the plan says. Knows FX, decides nothing.

torch's own extraction gives both graphs with AOTAutograd's calling convention; the backward is then written anew in the
order of the plan. An op that the plan runs twice becomes two nodes, and readers take the latest.
"""

import operator

import torch
import torch.fx as fx

from graphremat.passes import torch_private as private
from graphremat.passes.build import Index
from graphremat.passes.classify import JointGraph
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Problem


def split_joint_graph(
    joint: JointGraph, problem: Problem, index: Index, plan: Plan
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The forward and backward graph modules of ``plan``; the joint graph is left as it is."""
    saved_tensors = _saved_nodes(joint, problem, index, plan)
    saved_symbols = [
        node
        for node in joint.module.graph.nodes
        if node not in joint.info.tangents_closure
        and private.is_sym_node(node)
        and not private.is_assert_only_symbool(node)
        and isinstance(node.meta.get("val"), torch.SymInt)
    ]
    saved_opaque = [
        node
        for node in joint.module.graph.find_nodes(op="placeholder")
        if private.is_opaque_node(node) and node not in joint.info.tangents_closure
    ]
    forward, backward = private.extract_forward_backward(
        joint.module,
        saved_tensors,
        saved_symbols,
        saved_opaque,
        num_fwd_outputs=joint.num_forward_outputs,
        static_lifetime_input_nodes=joint.info.static_lifetime_input_nodes,
    )
    if private.has_recomputable_rng_ops(joint.module):
        forward, backward = private.functionalize_rng_ops(joint.module, forward, backward, len(saved_symbols))
    order = [index.op_node[op].name for op in plan.backward]
    backward = reorder(backward, order)
    forward = private.thread_graphsafe_rng_from_hops(forward, is_backward=False)
    backward = private.thread_graphsafe_rng_from_hops(backward, is_backward=True)
    return forward, backward


def _saved_nodes(joint: JointGraph, problem: Problem, index: Index, plan: Plan) -> list[fx.Node]:
    """Tensors the backward may take: all graph inputs, and what the plan saves, in the order of the joint graph.

    Those that turn out to have no reader are dropped by the extraction.
    """
    chosen: set[fx.Node] = set()
    for value in plan.saved:
        node = index.value_node[value]
        if node is None:
            raise ValueError(f"{problem.values[value].name} is saved, but has no node in the joint graph")
        chosen.add(node)
    return [
        node
        for node in joint.module.graph.nodes
        if node in chosen
        or (private.is_primal(node) and not private.is_sym_node(node) and not private.is_opaque_node(node))
    ]


def reorder(module: fx.GraphModule, order: list[str]) -> fx.GraphModule:
    """Write ``module``'s graph anew so that the nodes named in ``order`` run in that order, repeats as new nodes.

    What ``order`` does not name (tuple elements, symbolic sizes) is pulled in just before its first reader; tuple
    elements follow their op at once, so that parts nobody reads die there. Nodes with effects that nothing reads keep
    their place behind everything that stood before them; to draw random numbers is none, since where the plan does not
    say so they would be drawn a second time. Names in ``order`` that the graph has not are passed over:
    the extraction has found them dead.
    """
    old = module.graph
    by_name = {node.name: node for node in old.nodes}
    graph = fx.Graph()
    now: dict[fx.Node, fx.Node] = {}

    def emit(node: fx.Node) -> None:
        for operand in node.all_input_nodes:
            if operand not in now:
                emit(operand)
        now[node] = graph.node_copy(node, lambda n: now[n])
        now[node].meta[private.SOURCE_OP] = node.name
        for user in node.users:
            if user.target is operator.getitem and user.op == "call_function":
                now[user] = graph.node_copy(user, lambda n: now[n])

    for node in old.find_nodes(op="placeholder"):
        now[node] = graph.node_copy(node)
    for name in order:
        node = by_name.get(name)
        if node is not None and node.op == "call_function":
            emit(node)
    (output,) = old.find_nodes(op="output")
    for node in old.nodes:
        if node not in now and node is not output and _has_effects(node):
            emit(node)
    for operand in output.all_input_nodes:
        if operand not in now:
            emit(operand)
    copied = graph.node_copy(output, lambda n: now[n])
    copied.meta.update(output.meta)
    graph.eliminate_dead_code(_has_effects)
    graph.lint()
    return private.make_graph_module(module, graph)


def _has_effects(node: fx.Node) -> bool:
    return node.is_impure(impure_random=False)
