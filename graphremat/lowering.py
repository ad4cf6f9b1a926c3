"""Inductor's code generation without a compiler: the wrappers that a forward and a backward graph would become.

What of torch it relies on: the graphs are as a partitioner returns them to AOTAutograd (placeholders and calls carry
fake values in ``meta["val"]``; the backward's placeholders for saved values have the names of the forward's outputs);
AOTAutograd gives the backward's saved tensors the strides that the compiled forward produces, and lets the backward
overwrite saved tensors that alias no input, no user output and no gradient. The steps of Inductor themselves are in
:func:`graphremat.passes.torch_private.inductor_wrapper_code`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import fx

from graphremat.errors import PlanningError
from graphremat.passes.buffers import moves_a_kernel
from graphremat.passes.hints import default_size_hint
from graphremat.passes.kinds import replays_from_seed
from graphremat.passes.torch_private import (
    LoweredGraph,
    donates_buffers,
    draws_four_numbers,
    first_user_output,
    inductor_compiling_config,
    inductor_unsupported_config,
    inductor_wrapper_code,
    keeps_output_strides,
    no_pattern_if,
    one_number_at_a_time,
    results_written_out,
    storage_key,
)

GraphInput: TypeAlias = torch.Tensor | torch.SymInt | int | None


@dataclass(frozen=True)
class TensorSpec:
    """A tensor without its data.

    Attributes:
        name: the placeholder's or constant's name.
        shape, stride: in elements, symbols by their hints.
        storage_offset: where the first element lies, in elements.
        dtype, device: as on the real tensor.
        storage: a number; inputs of one graph with the same number are views of one storage.
        storage_bytes: the size of that whole storage.
    """

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int
    dtype: torch.dtype
    device: torch.device
    storage: int
    storage_bytes: int


@dataclass(frozen=True)
class SymbolSpec:
    """An input that is a number (a symbolic size by its hint) or an object without bytes."""

    name: str
    value: int | None


@dataclass(frozen=True)
class GeneratedCode:
    """What Inductor would run for one graph.

    Attributes:
        source: the Python wrapper, kernels as text inside.
        inputs: one a placeholder, in order.
        output_strides: the strides that the real outputs will have; None where an output is no tensor.
        values: what ``inputs`` describes, where that depends on symbolic sizes.
        constants: tensors that the wrapper reads as globals.
        namespace: other objects that the wrapper reads as globals.
        lowered: what it was generated from, to be compiled; None where that cannot be used again.
        switched_off: entries of Inductor's configuration that are on for the real compile but were off here, since
            they compile or time kernels. The real wrapper may then differ.
    """

    source: str
    inputs: tuple[TensorSpec | SymbolSpec, ...]
    output_strides: tuple[tuple[int | torch.SymInt, ...] | None, ...]
    values: tuple[Any, ...] = ()
    constants: tuple[TensorSpec, ...] = ()
    namespace: tuple[tuple[str, Any], ...] = ()
    switched_off: tuple[str, ...] = ()
    lowered: LoweredGraph | None = field(default=None, compare=False, repr=False)

    def at_assumed_sizes(self) -> "GeneratedCode":
        """The same code with inputs of the sizes that are assumed now (:mod:`graphremat.passes.hints`)."""
        if not self.values:
            return self
        return replace(self, inputs=describe_inputs([spec.name for spec in self.inputs], self.values))


def generate_step_code(
    forward: fx.GraphModule,
    backward: fx.GraphModule,
    *,
    user_visible_outputs: int = 0,
    num_forward_outputs: int | None = None,
    fenced: bool = False,
    draft: bool = False,
    on_final_code: Callable[[str], None] = lambda _: None,
) -> tuple[GeneratedCode, GeneratedCode]:
    """The wrappers of a partitioned step, the backward lowered for the strides that the forward produces.

    Args:
        forward, backward: the partitioner's two graphs; neither is changed.
        user_visible_outputs: how many outputs the user's model has (they keep eager's strides).
        num_forward_outputs: how many of the forward's outputs AOTAutograd gets before the saved values (mutated
            inputs, user outputs, intermediate bases); by default the user's outputs after the mutated inputs.
        fenced, draft: as for :func:`generate_code`.
        on_final_code: called with the wrapper of each graph as soon as it is there, if it can be compiled as it is.

    Raises:
        PlanningError: Inductor is configured to generate no Python wrapper.
    """
    forward_code = generate_code(
        forward,
        placeholder_values(forward),
        is_backward=False,
        user_visible_outputs=user_visible_outputs,
        fenced=fenced,
        draft=draft,
    )
    if forward_code.lowered:
        on_final_code(forward_code.source)
    if num_forward_outputs is None:
        num_forward_outputs = first_user_output(forward.graph) + user_visible_outputs
    donated = donated_inputs(forward, backward, num_forward_outputs)
    values = restrided_values(forward, backward, forward_code.output_strides, num_forward_outputs)
    backward_code = generate_code(
        backward, values, is_backward=True, donated=donated, fenced=fenced, draft=draft
    )
    if backward_code.lowered:
        on_final_code(backward_code.source)
    return forward_code, backward_code


def generate_code(
    gm: fx.GraphModule,
    example_inputs: Sequence[GraphInput],
    *,
    is_backward: bool,
    user_visible_outputs: int = 0,
    donated: Sequence[int] = (),
    fenced: bool = False,
    draft: bool = False,
) -> GeneratedCode:
    """Run Inductor on a copy of `gm`, under its current configuration, until it would start a compiler.

    Nothing is compiled, timed, written or looked up in a cache.

    Args:
        gm: a partitioned forward or backward graph; it is not changed.
        example_inputs: a fake tensor or number for each placeholder, in order, with the strides of the real run.
        is_backward: which of the two it is.
        user_visible_outputs: forward only: how many outputs the user's model has.
        donated: backward only: positions of the placeholders that Inductor may overwrite (:func:`donated_inputs`).
        fenced: as for :func:`code_as_planned`.
        draft: write the CPU's kernels without vector instructions, in three quarters of the time. The allocations are
            nearly always the same, but not by construction: what is relied on must come from no draft.

    Raises:
        PlanningError: Inductor is configured to generate no Python wrapper (``cpp_wrapper``, ``fx_wrapper``).
    """
    unsupported = inductor_unsupported_config()
    if unsupported:
        raise PlanningError(
            "the real peak of a plan is read from Inductor's Python wrapper, which torch._inductor.config."
            + " and torch._inductor.config.".join(unsupported)
            + " turns off; turn it on again, or use lowering='aot_eager'"
        )
    names = [node.name for node in gm.graph.find_nodes(op="placeholder")]
    if len(names) != len(example_inputs):
        raise ValueError(
            f"the graph has {len(names)} placeholders, but {len(example_inputs)} inputs were given"
        )
    copied = copy_graph_module(gm)
    _mark_user_visible(copied, is_backward=is_backward, user_visible_outputs=user_visible_outputs)
    with code_as_planned(gm, fenced=fenced):
        code = inductor_wrapper_code(
            copied, example_inputs, is_backward=is_backward, donated_inputs=donated, draft=draft
        )
    if draws_four_numbers(code.source):
        raise PlanningError(
            "a backward might draw other random numbers again than its forward, since the kernels of this torch take "
            "them from other positions; please report it"
        )
    return GeneratedCode(
        source=code.source,
        inputs=describe_inputs(names, example_inputs),
        output_strides=code.output_strides,
        values=tuple(example_inputs) if _has_symbols(example_inputs) else (),
        constants=tuple(
            _describe(name, tensor, index) for index, (name, tensor) in enumerate(code.constants.items())
        ),
        namespace=tuple(code.namespace.items()),
        switched_off=inductor_compiling_config(),
        lowered=code.lowered,
    )


def placeholder_values(gm: fx.GraphModule) -> list[Any]:
    """The traced value of each placeholder, in order."""
    return [node.meta["val"] for node in gm.graph.find_nodes(op="placeholder")]


def output_nodes(gm: fx.GraphModule) -> tuple[Any, ...]:
    """What the graph returns, in order: nodes, or plain values such as None."""
    returned = gm.graph.output_node().args[0]
    assert isinstance(returned, (tuple, list))
    return tuple(returned)


def number_of_outputs(gm: fx.GraphModule) -> int:
    """How many values a graph of Dynamo returns to the user's function."""
    returned = gm.graph.output_node().args[0]
    return len(returned) if isinstance(returned, (tuple, list)) else 1


def output_names(gm: fx.GraphModule) -> tuple[str | None, ...]:
    """The name of each output's node, None for an output that is no node."""
    return tuple(out.name if isinstance(out, fx.Node) else None for out in output_nodes(gm))


def restrided_values(
    forward: fx.GraphModule,
    backward: fx.GraphModule,
    output_strides: Sequence[tuple[int | torch.SymInt, ...] | None],
    num_forward_outputs: int,
) -> list[Any]:
    """The backward's placeholder values with the strides that the compiled forward gives the saved ones."""
    real_strides = {
        name: stride
        for name, stride in zip(output_names(forward), output_strides, strict=True)
        if name is not None and stride is not None
    }
    saved = {name for name in output_names(forward)[num_forward_outputs:] if name is not None}
    values = []
    for node in backward.graph.find_nodes(op="placeholder"):
        value = node.meta["val"]
        stride = real_strides.get(node.name) if node.name in saved else None
        if stride is not None and _hints(value.stride()) != _hints(stride):
            value = value.as_strided(value.size(), stride)
        values.append(value)
    return values


def _hints(sizes: Sequence[int | torch.SymInt]) -> tuple[int, ...]:
    return tuple(default_size_hint(size) for size in sizes)


def _has_symbols(values: Sequence[Any]) -> bool:
    return any(isinstance(value, torch.SymInt) for value in values)


def donated_inputs(
    forward: fx.GraphModule, backward: fx.GraphModule, num_forward_outputs: int
) -> tuple[int, ...]:
    """Positions of the backward's placeholders for saved tensors that nobody else can see.

    These share no storage with an input, with one of the first `num_forward_outputs` outputs, or with a gradient.
    """
    if not donates_buffers():
        return ()
    outputs = output_nodes(forward)
    seen = [
        *forward.graph.find_nodes(op="placeholder"),
        *outputs[:num_forward_outputs],
        *output_nodes(backward),
    ]
    visible = {storage_key(value) for value in map(_tensor_of, seen) if value is not None}
    hidden = {
        out.name
        for out in outputs[num_forward_outputs:]
        if (value := _tensor_of(out)) is not None and storage_key(value) not in visible
    }
    placeholders = backward.graph.find_nodes(op="placeholder")
    return tuple(index for index, node in enumerate(placeholders) if node.name in hidden)


def describe_inputs(
    names: Sequence[str], values: Sequence[GraphInput]
) -> tuple[TensorSpec | SymbolSpec, ...]:
    """A description of each input that outlives the fake tensors; views of one storage share its number."""
    storages: dict[int, int] = {}
    described: list[TensorSpec | SymbolSpec] = []
    for name, value in zip(names, values, strict=True):
        if isinstance(value, torch.Tensor):
            described.append(_describe(name, value, storages.setdefault(storage_key(value), len(storages))))
        elif isinstance(value, (int, torch.SymInt)):
            described.append(SymbolSpec(name, default_size_hint(value)))
        else:
            described.append(SymbolSpec(name, None))
    return tuple(described)


def _describe(name: str, tensor: torch.Tensor, storage: int) -> TensorSpec:
    return TensorSpec(
        name=name,
        shape=_hints(tensor.shape),
        stride=_hints(tensor.stride()),
        storage_offset=default_size_hint(tensor.storage_offset()),
        dtype=tensor.dtype,
        device=tensor.device,
        storage=storage,
        storage_bytes=default_size_hint(tensor.untyped_storage().nbytes()),
    )


def _tensor_of(node: Any) -> torch.Tensor | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, torch.Tensor) and value.layout == torch.strided else None


def copy_graph_module(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy whose graph, and the graphs inside it, may be rewritten. Tensors are shared, not copied."""
    graph = fx.Graph(tracer_cls=getattr(gm.graph, "_tracer_cls", None))
    mapped: dict[fx.Node, fx.Node] = {}
    returned = graph.graph_copy(gm.graph, val_map=mapped)
    original = gm.graph.output_node()
    output = graph.output(returned, type_expr=original.type)
    output.meta = dict(original.meta)
    copied = fx.GraphModule(gm, graph)
    copied.meta = dict(gm.meta)
    for name, child in list(copied.named_children()):
        if isinstance(child, fx.GraphModule):
            setattr(copied, name, copy_graph_module(child))
    return copied


def keep_saved_inputs(forward: fx.GraphModule) -> None:
    """Mark the inputs that a forward hands on to its backward, so that Inductor hands on the tensors themselves.

    Without the mark those that a convolution reads (all its weights) are copied to channels-last order, and the copies
    live until the backward beside what the caller holds. What the mark costs is a copy for each convolution there. That
    Inductor takes the output node's "user_visible_output_idxs" for outputs to be left in their order is in
    ``torch._inductor.graph.GraphLowering.run_node``.
    """
    meta = forward.graph.output_node().meta
    inputs = [
        i
        for i, out in enumerate(output_nodes(forward))
        if isinstance(out, fx.Node) and out.op == "placeholder"
    ]
    meta["user_visible_output_idxs"] = sorted({*meta.get("user_visible_output_idxs", ()), *inputs})


@contextmanager
def code_as_planned(gm: fx.GraphModule, *, fenced: bool) -> Iterator[None]:
    """Inductor's ways that would make of a graph what the plan does not say, turned off.

    Random numbers are those of every other plan with the same seed, and of the recomputation in the other graph. Where
    the backward is ``fenced`` (:mod:`graphremat.fence`), no product waits for the sum that it is added in. Results that
    the plan writes out get buffers (:func:`graphremat.passes.buffers.write_out`).
    """
    with (
        one_number_at_a_time(draws_numbers(gm)),
        no_pattern_if(moves_a_kernel) if fenced else nullcontext(),
        results_written_out(gm),
    ):
        yield


def draws_numbers(gm: fx.GraphModule) -> bool:
    """Whether the graph draws random numbers from a seed."""
    return any(map(replays_from_seed, gm.graph.nodes))


def _mark_user_visible(gm: fx.GraphModule, *, is_backward: bool, user_visible_outputs: int) -> None:
    outputs = output_nodes(gm)
    visible: range = range(0)
    if keeps_output_strides(is_backward=is_backward):
        start = 0 if is_backward else first_user_output(gm.graph)
        visible = range(len(outputs)) if is_backward else range(start, start + user_visible_outputs)
    gm.graph.output_node().meta["user_visible_output_idxs"] = [
        index for index in visible if isinstance(outputs[index], fx.Node)
    ]
    if not is_backward:
        keep_saved_inputs(gm)
    for call in gm.graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph):
        body = getattr(gm, call.args[0].target)
        body.graph.output_node().meta["user_visible_output_idxs"] = [
            index for index, out in enumerate(output_nodes(body)) if isinstance(out, fx.Node)
        ]
