"""Inductor: code generation, without a compiler.

Relied on: the steps of `torch._inductor.compile_fx._InProcessFxCompile.codegen_and_compile` up to
`GraphLowering.codegen` (view_to_reshape, fake propagation, original output strides, post-grad passes, GraphLowering,
codegen), which must be taken in that order; that the output node's meta "user_visible_output_idxs" marks what must
keep its strides; that `GraphLowering.bw_donated_idxs` says which backward inputs may be overwritten; that only
`AsyncCompile.use_process_pool` and `VecISA.check_build` could start a compiler before the wrapper is executed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any
from unittest.mock import patch

import sympy
import torch

from graphremat.passes.garbage import garbage_left
from graphremat.passes.torch_private.compiler import assumed_instructions
from graphremat.passes.torch_private.lowered_graph import (
    LoweredGraph,
    has_attributes,
    kernel_metrics,
    lowering_key_of,
    traced_key_of,
)
from graphremat.passes.torch_private.origins import origins_in_comments
from graphremat.passes.torch_private.settings import COSMETIC_CONFIG, inductor_compiling_config
from graphremat.passes.torch_private.sizes import hint_of_expression


@dataclass(frozen=True)
class WrapperCode:
    """What Inductor generated for one graph: the wrapper with its kernels as text, nothing compiled or written.

    Attributes:
        source: the Python wrapper.
        output_strides: strides of every output, in elements; None where an output is no tensor.
        constants: tensors that the wrapper reads as globals, by name.
        namespace: other objects that the wrapper reads as globals (classes, script objects).
        lowered: what it was generated from, for :func:`compiling_as_generated`; None where that cannot be used again.
    """

    source: str
    output_strides: tuple[tuple[int | torch.SymInt, ...] | None, ...]
    constants: dict[str, torch.Tensor]
    namespace: dict[str, Any]
    lowered: "LoweredGraph | None" = None


def inductor_wrapper_code(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    is_backward: bool,
    donated_inputs: Sequence[int],
    draft: bool,
) -> WrapperCode:
    """Run Inductor on `gm` up to and including code generation. `gm` is consumed: pass a copy.

    Args:
        gm: a forward or backward graph as the partitioner returned it, its output node's meta marked for Inductor.
        example_inputs: a fake tensor, int or SymInt for each placeholder; tensors with the strides of the real run.
        is_backward: what the graph is; Inductor fuses and reuses differently in a backward.
        donated_inputs: positions of the backward's placeholders that Inductor may overwrite.
        draft: write the CPU's kernels without vector instructions, which is faster.
    """
    from torch._dynamo import config as dynamo_config
    from torch._dynamo.utils import counters, preserve_rng_state
    from torch._inductor import compile_fx, config
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes.post_grad import view_to_reshape
    from torch._inductor.graph import GraphLowering
    from torch._inductor.utils import count_tangents, num_fw_fixed_arguments, shape_env_from_inputs
    from torch._inductor.virtualized import V
    from torch.fx._lazy_graph_module import _use_lazy_graph_module
    from torch.utils._python_dispatch import _disable_current_modes

    inputs = list(example_inputs)
    shape_env: Any = shape_env_from_inputs(inputs)
    # An argument since torch 2.13; before, GraphLowering takes this table by itself.
    by_argument = "get_decomp_fn" in signature(GraphLowering).parameters
    decompositions: dict[str, Any] = {"get_decomp_fn": select_decomp_table} if by_argument else {}
    reusable = (
        not draft
        and not inductor_compiling_config()
        and all(not getattr(config, name) for name in COSMETIC_CONFIG)
    )
    quiet: dict[str, Any] = {**COSMETIC_CONFIG, **dict.fromkeys(inductor_compiling_config(), False)}
    if draft:
        quiet["cpp.simdlen"] = 1
    with (
        config.patch(quiet),
        garbage_left(),
        _disable_current_modes(),
        _use_lazy_graph_module(dynamo_config.use_lazy_graph_module),
        DebugContext(),
        origins_in_comments(),
        no_compiler(),
        _counters_kept(),
        _runtime_asserts_kept(shape_env),
        preserve_rng_state(),
        torch.no_grad(),
    ):
        view_to_reshape(gm)  # type: ignore[no-untyped-call]
        traced_key = traced_key_of(gm, inputs) if reusable else None
        fake_mode = compile_fx.fake_tensor_prop(gm, inputs)
        compile_fx._recursive_record_original_output_strides(gm)
        before_passes = counters["inductor"].copy()
        with V.set_fake_mode(fake_mode), compile_fx.get_cuda_device_context(gm):
            compile_fx._recursive_post_grad_passes(gm, is_inference=False)
        before_lowering = counters["inductor"].copy()
        if has_attributes(gm):  # which passes have added
            traced_key = None
        if is_backward:
            static_inputs: Sequence[int] = range(count_tangents(gm))
        else:
            static_inputs = compile_fx.get_static_input_idxs(num_fw_fixed_arguments(len(inputs), len(inputs)))
        with (
            V.set_fake_mode(fake_mode),
            compile_fx.maybe_disable_comprehensive_padding(inputs),
            compile_fx.maybe_disable_graph_partition(False, False),
        ):
            graph = GraphLowering(
                gm,
                example_inputs=inputs,
                shape_env=shape_env,
                is_inference=False,
                is_backward=is_backward,
                inputs_to_check=compile_fx.get_input_idxs_to_check(inputs, static_inputs),
                **decompositions,
            )
            graph.bw_donated_idxs = list(donated_inputs)
            graph.freeze_runtime_asserts()
            key = lowering_key_of(gm, inputs, graph) if reusable else None
            before = kernel_metrics()
            with V.set_graph_handler(graph), V.set_extern_kernel_nodes([]):
                graph.run(*inputs)
                wrapper, kernels = graph.codegen()
                strides = tuple(_output_strides(graph, out) for out in graph.graph_outputs)
            counted = {name: value - before[name] for name, value in kernel_metrics().items()}
        matched, called = before_lowering - before_passes, counters["inductor"] - before_lowering
    return WrapperCode(
        source=wrapper.value,
        output_strides=strides,
        constants=dict(graph.constants),
        namespace={**graph.torchbind_constants, **graph.opaque_value_type_classes},
        lowered=None
        if key is None
        else LoweredGraph(graph, (wrapper, kernels), traced_key, key, counted, matched, called),
    )


@contextmanager
def no_compiler() -> Iterator[None]:
    """No kernel is handed to a compile worker, and the processor's vector instructions are taken for granted.

    Inductor asks a compiler once a process whether it accepts the flags of a vector instruction set and caches the
    answer; inside this context an answer that is not cached yet is taken to be yes, and is not cached. The
    compiler is asked for its version, which decides the spelling of pragmas; where there is none it is taken for gcc.
    """
    from torch._inductor import async_compile, cpp_builder, cpu_vec_isa
    from torch._inductor.exc import InvalidCxxCompiler

    def unless_absent(ask: Callable[[], bool], assumed: bool) -> Callable[[], bool]:
        def answer() -> bool:
            try:
                return bool(ask())
            except InvalidCxxCompiler:
                return assumed

        return answer

    with ExitStack() as stack:
        for question in ("is_gcc", "is_clang", "is_apple_clang", "is_intel_compiler", "is_msvc_cl"):
            answer = unless_absent(getattr(cpp_builder, question), question == "is_gcc")
            stack.enter_context(patch.object(cpp_builder, question, answer))
        stack.enter_context(patch.object(async_compile.AsyncCompile, "use_process_pool", lambda *_: False))
        if not cpu_vec_isa.valid_vec_isa_list.cache_info().currsize:
            assumed = assumed_instructions()
            stack.enter_context(patch.object(cpu_vec_isa, "valid_vec_isa_list", lambda: assumed))
        yield


@contextmanager
def _counters_kept() -> Iterator[None]:
    """Inductor's and Dynamo's counters and metrics are the same after as before."""
    from torch._dynamo.utils import counters
    from torch._inductor import metrics

    def plain(value: object) -> bool:
        return isinstance(value, (int, list)) and not isinstance(value, bool)

    kept_counters = {name: counter.copy() for name, counter in counters.items()}
    kept_metrics = {
        name: list(value) if isinstance(value, list) else value
        for name, value in vars(metrics).items()
        if plain(value) and not name.startswith("_")
    }
    try:
        yield
    finally:
        counters.clear()
        counters.update(kept_counters)
        vars(metrics).update(kept_metrics)


@contextmanager
def _runtime_asserts_kept(shape_env: Any) -> Iterator[None]:
    """Lowering freezes the runtime asserts of the shapes; here they thaw again."""
    if shape_env is None:
        yield
        return
    frozen = shape_env.runtime_asserts_frozen
    try:
        yield
    finally:
        shape_env.runtime_asserts_frozen = frozen


def _output_strides(graph: Any, out: Any) -> tuple[int | torch.SymInt, ...] | None:
    from torch._inductor.ir import IRNode

    if not isinstance(out, IRNode) or not out.has_tensor_output():
        return None
    return tuple(_size(graph.sizevars, stride) for stride in out.get_layout().stride)


def _size(sizevars: Any, size: Any) -> int | torch.SymInt:
    expression = sizevars.remove_precomputed_replacements(sympy.sympify(size))
    hint = hint_of_expression(sizevars.shape_env, expression)
    if not expression.free_symbols:
        return hint
    return sizevars.shape_env.create_symintnode(expression, hint=hint)  # type: ignore[no-any-return]
