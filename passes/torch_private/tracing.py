"""Around a compilation: Dynamo's context of a trace, fake tensors, and the autograd node of what was compiled.

Relied on, for modules without data: `Module.to`, `half`, `bfloat16`, `cuda` and the like are
`self._apply(function of a tensor)`, which calls itself for the children.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch._dynamo.backends.common import aot_autograd as aot_autograd
from torch._dynamo.exc import ShortenTraceback as ShortenTraceback
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode


def tracing_context() -> Any:
    """What Dynamo has in place while a backend compiles; None outside."""
    return torch._guards.TracingContext.try_get()


def traced_inputs(gm: torch.fx.GraphModule) -> list[Any]:
    """The fake tensors and symbolic sizes with which Dynamo traced a graph, one for each placeholder."""
    return [node.meta["example_value"] for node in gm.graph.find_nodes(op="placeholder")]


@contextmanager
def tracing_anew(context: Any = None) -> Iterator[None]:
    """As Dynamo has it while a backend compiles, for a graph that is compiled again: in the context of its first
    compilation, with the inputs of that, or in a new one with real inputs of fixed shapes.

    Without a tracing context FX keeps random ops that nothing reads, and AOTAutograd's graphs are other ones.

    Raises:
        RuntimeError: the code is only right for some sizes, which Dynamo, being done, would not check.
    """
    from torch._guards import TracingContext, tracing

    context = context or TracingContext.try_get() or TracingContext(FakeTensorMode())
    env = context.fake_mode.shape_env
    known = 0 if env is None else len(env.guards)
    with tracing(context):
        yield
    added = [] if env is None else [str(guard.expr) for guard in env.guards[known:]]
    if added:
        raise RuntimeError(
            f"the code would only be right where {' and '.join(added)}, which nobody would check: let the largest "
            "shape come first"
        )


def is_static_input(tensor: torch.Tensor) -> bool:
    """Whether Dynamo takes the tensor as one that stays where it is from call to call: a parameter or a buffer."""
    return isinstance(tensor, torch.nn.Parameter) or hasattr(tensor, "_dynamo_static_input_type")


MOST_NODES_ABOVE = 4
"""Views that may stand between an output of a compiled function and its node."""


def compiled_node(out: Any) -> Any:
    """The node of the backward behind an output of a compiled function; None if nothing is differentiated.

    AOTAutograd makes one autograd function of a graph. Outputs that are views of others may have further nodes above.
    """
    pending = [
        t.grad_fn for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, torch.Tensor)
    ]
    for _ in range(MOST_NODES_ABOVE):
        for node in pending:
            if node is not None and node.name() == "CompiledFunctionBackward":
                return node
        pending = [above for node in pending if node is not None for above, _ in node.next_functions]
    return None


def saved_tensors(node: Any) -> list[torch.Tensor]:
    """What the node of a compiled function holds for its backward; nothing once that has run."""
    try:
        checked = node.saved_tensors
    except RuntimeError:  # freed
        return []
    return [*checked, *(getattr(node, "_tensors_no_vc_check", None) or ())]


def ends_in_graph_break(gm: torch.fx.GraphModule) -> bool:
    """Whether Dynamo compiled the graph because it could not go on: another one is likely to follow."""
    return bool(getattr(getattr(gm, "compile_subgraph_reason", None), "graph_break", False))


def boxed(run: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    """Mark a function that takes its arguments as a list and empties it, so that they can die while it runs."""
    run._boxed_call = True  # type: ignore[attr-defined]
    return run


@contextmanager
def disable_current_modes() -> Iterator[None]:
    """No dispatch mode that is active outside sees what is called inside, and no Python kernel replaces a C++ one."""
    from torch._C import _DisablePythonDispatcher
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), _DisablePythonDispatcher():
        yield


def storage_key(tensor: torch.Tensor) -> int:
    """A number that two tensors share while, and only while, they live in one storage."""
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def modules_changed_without_data() -> Iterator[None]:
    """A context in which ``Module.to`` and the like change modules of fake tensors; ties between parameters stay.

    Module's own way swaps the insides of a parameter with those of another, which torch refuses where the parameter is
    noted elsewhere, as those made in a ``FakeTensorMode`` are.
    """
    changed: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # with the old one, whose id must stay its own
    depth = 0

    def apply(
        module: torch.nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> torch.nn.Module:
        nonlocal depth
        depth += 1
        try:
            for child in module.children() if recurse else ():
                child._apply(function)
            for of_module in (module._parameters, module._buffers):
                for name, tensor in of_module.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in changed:
                        changed[id(tensor)] = (tensor, _applied(function, tensor))
                    of_module[name] = changed[id(tensor)][1]  # type: ignore[assignment]
        finally:
            depth -= 1
            if not depth:
                changed.clear()
        return module

    with patch.object(torch.nn.Module, "_apply", apply):
        yield


def _applied(function: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        other = function(tensor)
    if other is tensor or not isinstance(tensor, torch.nn.Parameter):
        return other
    return torch.nn.Parameter(other, tensor.requires_grad)


def many_recompilations(limit: int = 256) -> None:
    """Let Dynamo keep many compiled versions of one function, as a comparison of backends in one process needs."""
    from torch._dynamo import config

    config.recompile_limit = limit
    config.accumulated_recompile_limit = limit


def compiled_graphs() -> int:
    """How many graphs Dynamo has handed to backends in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
