"""Inductor: compiling what was generated before.

Relied on: `_InProcessFxCompile.codegen_and_compile` calls `view_to_reshape`, `fake_tensor_prop`, which fills in the
nodes' fake values and gives their mode, and `_recursive_post_grad_passes`, which rewrites the graph; it builds
`compile_fx.GraphLowering(gm, example_inputs=..., ...)`, all by these names, and then calls of it
`freeze_runtime_asserts`, `run` and, in `compile_to_module`, `codegen`, in this order.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch.utils import _pytree as pytree

from graphremat.passes.torch_private.tracing import tracing_context

log = logging.getLogger("graphremat")


@dataclass(frozen=True, eq=False)
class LoweredGraph:
    """A graph in Inductor's own form, its code generated.

    Attributes:
        graph: the GraphLowering.
        code: what its ``codegen`` returned.
        traced_key: the graph and its inputs before Inductor's passes; None where these may do more than rewrite nodes.
        key: everything outside of Inductor's configuration that decides the code.
        counted: by how much the code raised Inductor's metrics.
        matched, called: by how much the passes and the lowering raised its counters.
    """

    graph: Any
    code: tuple[Any, Any]
    traced_key: tuple[object, ...] | None
    key: tuple[object, ...]
    counted: dict[str, int]
    matched: Counter[str]
    called: Counter[str]

    @contextmanager
    def taken(self) -> Iterator[None]:
        """A context in which Inductor compiles this graph, if it is the one that it is given, and runs no pass and no
        lowering a second time."""
        from torch._dynamo.utils import counters
        from torch._guards import detect_fake_mode
        from torch._inductor import compile_fx

        propagate, run_passes = compile_fx.fake_tensor_prop, compile_fx._recursive_post_grad_passes
        same: list[torch.fx.GraphModule] = []

        def fake_tensor_prop(
            gm: torch.fx.GraphModule, inputs: Sequence[Any], *args: Any, **kwargs: Any
        ) -> Any:
            mode = detect_fake_mode(inputs)
            if mode is None or self.traced_key is None or traced_key_of(gm, inputs) != self.traced_key:
                return propagate(gm, inputs, *args, **kwargs)
            same.append(gm)
            return mode

        def post_grad_passes(gm: torch.fx.GraphModule, *args: Any, **kwargs: Any) -> None:
            if gm not in same:
                run_passes(gm, *args, **kwargs)
                return
            gm.graph = self.graph.module.graph
            counters["inductor"].update(self.matched)

        with (
            patch.object(compile_fx, "fake_tensor_prop", fake_tensor_prop),
            patch.object(compile_fx, "_recursive_post_grad_passes", post_grad_passes),
            patch.object(compile_fx, "GraphLowering", self.compiled_as),
        ):
            yield

    def compiled_as(self, gm: torch.fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Any:
        """The GraphLowering, as if it were new, if this is the graph that it was made of; else None."""
        from torch._dynamo.utils import counters
        from torch._inductor import metrics
        from torch._inductor.graph import GraphLowering

        new = GraphLowering(gm, example_inputs=example_inputs, **kwargs)
        if new.const_module is not None or lowering_key_of(gm, example_inputs, new) != self.key:
            return new
        graph = self.graph
        graph.graph_id = new.graph_id
        graph.example_inputs = example_inputs
        graph.freeze_runtime_asserts = graph.run = lambda *_: None
        graph.codegen = self._code_named_anew
        counters["inductor"].update(self.called)
        for name, count in self.counted.items():
            setattr(metrics, name, getattr(metrics, name) + count)
        return graph

    def _code_named_anew(self) -> tuple[Any, Any]:
        """The code, whose first line names what is being compiled."""
        wrapper, kernels = self.code
        first, rest = wrapper.value.split("\n", 1)
        context = tracing_context()
        if first.startswith("# AOT ID:") and context is not None:
            wrapper.value = f"# AOT ID: {context.aot_graph_name}\n{rest}"
        return wrapper, kernels


def compiling_as_generated(lowered: LoweredGraph | None) -> AbstractContextManager[None]:
    """Inductor takes the code of this graph, if it is the graph that it compiles in this block, and does not generate
    it a second time."""
    return nullcontext() if lowered is None else lowered.taken()


def traced_key_of(gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> tuple[object, ...] | None:
    """None where the graph has constants, which passes may fold, or bodies, which they rewrite, or where a size is
    symbolic."""
    return None if has_attributes(gm) else _written_down(gm, inputs)


def has_attributes(gm: torch.fx.GraphModule) -> bool:
    """Whether the graph reads anything but its inputs."""
    return any(node.op in ("get_attr", "call_module") for node in gm.graph.nodes)


def lowering_key_of(gm: torch.fx.GraphModule, inputs: Sequence[Any], graph: Any) -> tuple[object, ...] | None:
    """None where a size is symbolic: lowering asks and answers questions of the shapes then."""
    from torch._inductor import cpu_vec_isa

    written_down = _written_down(gm, inputs)
    if written_down is None:
        return None
    return (
        *written_down,
        graph.is_inference,
        graph.is_backward,
        graph.cpp_wrapper or graph.aot_mode or graph.fx_wrapper,
        tuple(graph.inputs_to_check or ()),
        tuple(graph.bw_donated_idxs or ()) if graph.is_backward else (),
        # Finding out compiles programs, which takes the better part of a minute, and only a CPU's kernels depend on it.
        str(cpu_vec_isa.valid_vec_isa_list()) if _touches_cpu(gm) else "",
    )


def _written_down(gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> tuple[object, ...] | None:
    """The nodes and the inputs of a graph; None where a size is symbolic."""
    described: list[object] = []
    for value in inputs:
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided:
                return None
            sizes = (*value.shape, *value.stride(), value.storage_offset())
            if not all(type(size) is int for size in sizes):
                return None
            described.append(
                (tuple(value.shape), tuple(value.stride()), sizes[-1], value.dtype, value.device)
            )
        elif isinstance(value, torch.SymInt):
            return None
        else:
            described.append(value)
    nodes = tuple((n.op, str(n.target), n.name, str(n.args), str(n.kwargs)) for n in gm.graph.nodes)
    visible = tuple(gm.graph.output_node().meta.get("user_visible_output_idxs", ()))
    return nodes, tuple(described), visible


def _touches_cpu(gm: torch.fx.GraphModule) -> bool:
    """Whether any tensor of the graph lies on a CPU."""
    values = (value for node in gm.graph.nodes for value in pytree.tree_leaves(node.meta.get("val")))
    return any(isinstance(value, torch.Tensor) and value.device.type == "cpu" for value in values)


def kernel_metrics() -> dict[str, int]:
    """Inductor's counts of what it has generated in this process: kernels, fusions."""
    from torch._inductor import metrics

    return {name: value for name, value in vars(metrics).items() if type(value) is int}
