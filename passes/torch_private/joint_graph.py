"""AOTAutograd: joint graphs, their split, and the operators in them.

Relied on: `classify_nodes` gives required_fw (needed by a forward output), tangents_closure (behind a tangent) and
required_bw (that, and what a gradient output names directly). `extract_forward_backward(joint, saved_values,
saved_sym_nodes, ...)` drops saved values without a reader in the backward, in place, and builds both graphs with
AOTAutograd's calling convention: forward outputs are (user outputs, saved tensors, opaque, symbols), backward
placeholders (symbols, saved tensors, opaque, tangents, rng), with the names of the joint graph. Opaque objects are an
argument of their own since torch 2.13; before, they are told apart among the saved values.

Further: `OpOverload._schema.arguments`, each with `name`, `has_default_value()` and `default_value` (public helpers,
`fx.Node.normalized_arguments`, need a root module and re-resolve the overload by type, per node); and
`torch._inductor.decomposition.select_decomp_table()`, which AOTAutograd traces with under Inductor.
"""

import copy
from collections.abc import Callable, Sequence
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch._functorch._aot_autograd.descriptors import InputMutationAOTOutput as InputMutationAOTOutput
from torch._functorch.compile_utils import fx_graph_cse as fx_graph_cse
from torch._functorch.partitioners import NodeInfo as NodeInfo
from torch._functorch.partitioners import _extract_fwd_bwd_modules
from torch._functorch.partitioners import classify_nodes as classify_nodes
from torch._functorch.partitioners import cleanup_recompute_tags as cleanup_recompute_tags
from torch._functorch.partitioners import default_partition as default_partition
from torch._functorch.partitioners import force_save_collectives as force_save_collectives
from torch._functorch.partitioners import force_save_effectful_ops as force_save_effectful_ops
from torch._functorch.partitioners import functionalize_rng_ops as functionalize_rng_ops
from torch._functorch.partitioners import has_recomputable_ops as has_recomputable_ops
from torch._functorch.partitioners import has_recomputable_rng_ops as has_recomputable_rng_ops
from torch._functorch.partitioners import is_sym_node as is_sym_node
from torch._functorch.partitioners import must_recompute as must_recompute
from torch._functorch.partitioners import thread_graphsafe_rng_from_hops as thread_graphsafe_rng_from_hops
from torch._ops import HigherOrderOperator as HigherOrderOperator
from torch._ops import OpOverload as OpOverload
from torch.fx._lazy_graph_module import _make_graph_module as make_graph_module

REGION_BUDGET_KEY = "_region_activation_memory_budget"
"""Where a node's ``meta["custom"]`` holds the budget that ``torch.autograd.graph.region_activation_memory_budget`` gave
it, which torch's partitioner alone reads (since torch 2.13)."""


def is_opaque_node(node: Any) -> bool:
    """Whether a node stands for an object that is neither a tensor nor a number, such as a process group."""
    from torch._functorch._aot_autograd import graph_compile
    from torch._library.fake_class_registry import FakeScriptObject

    if hasattr(graph_compile, "is_opaque_node"):
        return bool(graph_compile.is_opaque_node(node))
    return isinstance(node, torch.fx.Node) and isinstance(
        node.meta.get("val"), (torch.ScriptObject, FakeScriptObject)
    )


def is_assert_only_symbool(node: torch.fx.Node) -> bool:
    """Whether a node is a truth about sizes that nothing but assertions reads."""
    return (
        isinstance(node.meta.get("val"), torch.SymBool)
        and bool(node.users)
        and all(user.target is torch.ops.aten._assert_scalar.default for user in node.users)
    )


def extract_forward_backward(
    joint: torch.fx.GraphModule,
    saved_values: list[torch.fx.Node],
    saved_symbols: list[torch.fx.Node],
    saved_opaque: list[torch.fx.Node],
    **kwargs: Any,
) -> tuple[torch.fx.GraphModule, torch.fx.GraphModule]:
    """The forward and backward graphs that torch makes of a joint graph and what is saved of it."""
    if "saved_opaque_nodes" in signature(_extract_fwd_bwd_modules).parameters:
        found = _extract_fwd_bwd_modules(joint, saved_values, saved_symbols, saved_opaque, **kwargs)
    else:
        found = _extract_fwd_bwd_modules(joint, [*saved_values, *saved_opaque], saved_symbols, **kwargs)
    return found  # type: ignore[no-any-return]


@cache
def operator_arguments(target: Any) -> tuple[tuple[str, Any], ...]:
    """``(name, default)`` of every argument of an operator overload, in order; empty for anything else.

    An argument that has no default gets None.
    """
    schema = getattr(target, "_schema", None)
    if schema is None:
        return ()
    return tuple(
        (arg.name, arg.default_value if arg.has_default_value() else None) for arg in schema.arguments
    )


def mutated_inputs(graph: torch.fx.Graph) -> frozenset[str]:
    """Names of the placeholders that the forward overwrites: in the graph by copy_, or by AOTAutograd after it.

    Relied on: joint graphs carry descriptors in ``meta["desc"]``, one an input and a list on the output node; a new
    value of an input is an InputMutationAOTOutput that holds the input's descriptor.
    """
    output = graph.output_node()
    overwritten = [
        desc.mutated_input for desc in output.meta.get("desc", ()) if isinstance(desc, InputMutationAOTOutput)
    ]
    found = {node.name for node in graph.find_nodes(op="placeholder") if node.meta.get("desc") in overwritten}
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
        target = node.args[0]
        if isinstance(target, torch.fx.Node) and target.op == "placeholder":
            found.add(target.name)
    return frozenset(found)


def first_user_output(graph: torch.fx.Graph) -> int:
    """Position of the first user output of a joint or forward graph, behind the new values of inputs."""
    descs = graph.output_node().meta.get("desc", ())
    return sum(isinstance(desc, InputMutationAOTOutput) for desc in descs)


def inductor_decompositions() -> dict[Any, Any]:
    """What Inductor replaces operators with before a partitioner sees the joint graph; for ``make_fx``."""
    from torch._inductor.decomposition import select_decomp_table

    return dict(select_decomp_table())


def trace_joint_graph(
    function: Callable[..., Any], inputs: Sequence[Any], decompositions: dict[Any, Any]
) -> torch.fx.GraphModule:
    """The joint graph of a function of flat tensors that gives a tuple of tensors and changes no input.

    Its module is a lazy one, as under ``torch.compile``: it compiles its Python code when somebody asks for it.
    """
    from torch._functorch.aot_autograd import aot_export_joint_simple
    from torch.fx._lazy_graph_module import _use_lazy_graph_module

    with _use_lazy_graph_module(True):
        module = aot_export_joint_simple(
            function, tuple(inputs), trace_joint=True, decompositions=decompositions
        )
        return make_graph_module(module, module.graph)  # type: ignore[attr-defined, no-any-return]


def copy_graph_module(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A module with a graph of its own, lazy if ``module`` is."""
    from torch.fx._lazy_graph_module import _LazyGraphModule, _use_lazy_graph_module

    with _use_lazy_graph_module(isinstance(module, _LazyGraphModule)):
        return make_graph_module(module, copy.deepcopy(module.graph))  # type: ignore[no-any-return]
