"""Inductor: which nodes a call of its code computes.

Relied on: a kernel's call is written right after `define_kernel(source, nodes, ...)` of the device's scheduling; a
library's in `Scheduler.codegen_extern_call(node)`; a comment written before it stays before it. `CompiledFxGraph`
calls the method `Runner.call` of the wrapper's module; where something stands between, it has the `cache_key` that
the module is named after, unless caches are off, and `PyCodeCache` has that module.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import CellType
from typing import Any
from unittest.mock import patch

ORIGINS = "# graphremat: "
"""Starts the comment before a call, which names the nodes of the graph that the call computes."""
SOURCE_OP = "graphremat_op"
"""In a node's meta: the name of the node of the joint graph that it is a run of."""


@contextmanager
def origins_in_comments() -> Iterator[None]:
    """In this block Inductor's wrappers say before each call which nodes it computes."""
    from torch._inductor.codegen.cpp import CppScheduling
    from torch._inductor.codegen.triton import TritonScheduling
    from torch._inductor.scheduler import Scheduler
    from torch._inductor.virtualized import V

    def written(nodes: Sequence[Any]) -> None:
        parts = [n for n in nodes if hasattr(n, "get_nodes")]
        names = sorted({name for part in parts for name in _source_ops(part)})
        V.graph.wrapper_code.writeline(f"{ORIGINS}{', '.join(names)}")

    def telling(define: Callable[..., Any]) -> Callable[..., Any]:
        def define_kernel(self: Any, source: str, nodes: Sequence[Any], *rest: Any) -> Any:
            name = define(self, source, nodes, *rest)
            written(nodes)
            return name

        return define_kernel

    extern_call = Scheduler.codegen_extern_call

    def codegen_extern_call(self: Any, node: Any) -> None:
        written([node])
        extern_call(self, node)

    with ExitStack() as stack:
        for scheduling in (CppScheduling, TritonScheduling):
            stack.enter_context(patch.object(scheduling, "define_kernel", telling(scheduling.define_kernel)))
        stack.enter_context(patch.object(Scheduler, "codegen_extern_call", codegen_extern_call))
        yield


def _source_ops(scheduler_node: Any) -> Iterator[str]:
    for part in scheduler_node.get_nodes():
        if part.node is not None:
            for origin in part.node.get_origins():
                yield origin.meta.get(SOURCE_OP, origin.name)


def origin_names(scheduler_node: Any) -> list[str]:
    """Names of the FX nodes that a scheduler node computes, fused or not."""
    names: list[str] = []
    for part in scheduler_node.get_nodes():
        ir_node = part.node
        if ir_node is not None:
            names.extend(origin.name for origin in ir_node.get_origins())
    return sorted(set(names))


def wrapper_function(compiled: Any) -> Any:
    """The Python function that runs a graph which Inductor compiled; None where there is no such function. For a GPU
    it is called by another that aligns inputs."""
    from torch._inductor.codecache import PyCodeCache

    outer = getattr(compiled, "current_callable", None)
    cells = getattr(outer, "__closure__", None) or ()
    for called in (
        outer,
        *(cell.cell_contents for cell in cells if cell != CellType()),
    ):  # an empty cell has none
        function = getattr(called, "__func__", None)
        if getattr(function, "__qualname__", "") == "Runner.call":
            return function
    key = getattr(compiled, "cache_key", None)
    for module in reversed(PyCodeCache.modules):
        if key and Path(str(module.__file__)).stem == key:
            return getattr(getattr(module, "Runner", None), "call", None)
    return None
