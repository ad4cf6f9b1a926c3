"""The only module that imports or reaches into private parts of torch; everything else imports from here.

One section a topic, each with what we rely on, so that a new torch release is checked in one place.
"""

import ast
import copy
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from pathlib import Path
from types import CellType
from typing import Any
from unittest.mock import patch

import sympy
import torch
from torch._dynamo.backends.common import aot_autograd as aot_autograd
from torch._dynamo.exc import ShortenTraceback as ShortenTraceback
from torch._functorch._aot_autograd.descriptors import InputMutationAOTOutput as InputMutationAOTOutput
from torch._functorch._aot_autograd.utils import _is_primal as is_primal
from torch._functorch.compile_utils import fx_graph_cse as fx_graph_cse
from torch._functorch.partitioners import NodeInfo as NodeInfo
from torch._functorch.partitioners import _extract_fwd_bwd_modules
from torch._functorch.partitioners import classify_nodes as classify_nodes
from torch._functorch.partitioners import cleanup_recompute_tags as cleanup_recompute_tags
from torch._functorch.partitioners import default_partition as default_partition
from torch._functorch.partitioners import force_save_bw_mutation_src as force_save_backward_mutation_source
from torch._functorch.partitioners import force_save_collectives as force_save_collectives
from torch._functorch.partitioners import force_save_effectful_ops as force_save_effectful_ops
from torch._functorch.partitioners import functionalize_rng_ops as functionalize_rng_ops
from torch._functorch.partitioners import has_recomputable_ops as has_recomputable_ops
from torch._functorch.partitioners import has_recomputable_rng_ops as has_recomputable_rng_ops
from torch._functorch.partitioners import is_sym_node as is_sym_node
from torch._functorch.partitioners import min_cut_rematerialization_partition as torch_partition
from torch._functorch.partitioners import must_recompute as must_recompute
from torch._functorch.partitioners import thread_graphsafe_rng_from_hops as thread_graphsafe_rng_from_hops
from torch._inductor.choices import InductorChoices as InductorChoices
from torch._inductor.compile_fx import compile_fx as compile_fx
from torch._inductor.compile_fx import compile_fx_inner as compile_fx_inner
from torch._inductor.custom_graph_pass import CustomPartitionerFn as CustomPartitionerFn
from torch._library.utils import is_builtin as is_builtin_operator
from torch._ops import HigherOrderOperator as HigherOrderOperator
from torch._ops import OpOverload as OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.fx._lazy_graph_module import _make_graph_module as make_graph_module
from torch.utils import _pytree as pytree

from graphremat.passes.garbage import garbage_left

log = logging.getLogger("graphremat")

# ---- AOTAutograd: the joint graph and its split ------------------------------------------------------------
# classify_nodes gives required_fw (needed by a forward output), tangents_closure (behind a tangent) and required_bw
# (that, and what a gradient output names directly). extract_forward_backward(joint, saved_values, saved_sym_nodes, ...)
# drops saved values without a reader in the backward, in place, and builds both graphs with AOTAutograd's calling
# convention: forward outputs are (user outputs, saved tensors, opaque, symbols), backward placeholders (symbols, saved
# tensors, opaque, tangents, rng), with the names of the joint graph. Opaque objects are an argument of their own since
# torch 2.13; before, they are told apart among the saved values.

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


# ---- Structured trace: what TORCH_TRACE records and tlparse shows -------------------------------------------------
# Relied on: `trace_structured("artifact", ...)` adds a text under a name to the compilation that is running, and asks
# for the text only where somebody records.


def trace_artifact(name: str, text: Callable[[], str]) -> None:
    """Add a text to torch's structured trace of this compilation."""
    from torch._logging import trace_structured

    trace_structured("artifact", lambda: {"name": name, "encoding": "string"}, payload_fn=text)


# ---- Profiler: the allocator's events ----------------------------------------------------------------------
# Relied on: `torch.profiler.profile.profiler.kineto_results.experimental_event_tree()`, whose nodes have `name`,
# `start_time_ns` and `children`, and for the name "[memory]" `extra_fields` with `ptr`, `alloc_size` (signed)
# and `device`. The public events (`profile.events()`) carry the sizes, but no address to tell blocks apart.


@dataclass(frozen=True)
class MemoryEvent:
    """One allocation (``nbytes > 0``) or free (``nbytes < 0``) of the block at ``address``."""

    time_ns: int
    address: int
    nbytes: int
    device_type: str


def profiler_is_running() -> bool:
    """Whether a profiler of torch is recording in this process, which allows no second one."""
    return bool(torch._C._autograd._profiler_enabled())


def after_next_backward(act: Callable[[], None]) -> Callable[[], None]:
    """Call ``act`` once, when the next backward pass that this thread starts has returned; gives what calls it off.

    A profiler cannot be stopped in a hook: the engine puts the state that the thread had back in place afterwards.
    Relied on: ``torch.autograd`` calls the engine by the name ``_engine_run_backward``, for ``backward`` and ``grad``.
    """
    run, thread, waiting = torch.autograd._engine_run_backward, threading.get_ident(), [True]

    def call_off() -> None:
        waiting.clear()
        if torch.autograd._engine_run_backward is patched:
            torch.autograd._engine_run_backward = run

    def patched(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        finally:
            if waiting and threading.get_ident() == thread:
                call_off()
                act()

    torch.autograd._engine_run_backward = patched
    return call_off


def profiled_memory_events(recorded: torch.profiler.profile) -> list[MemoryEvent]:
    """The allocator's events of a finished profile with ``profile_memory=True``, in order of time.

    Raises:
        RuntimeError: the profile has not run.
    """
    if recorded.profiler is None or recorded.profiler.kineto_results is None:
        raise RuntimeError("the profile has not run, so it has no events")
    events: list[MemoryEvent] = []
    pending: list[Any] = list(reversed(recorded.profiler.kineto_results.experimental_event_tree()))
    while pending:
        node = pending.pop()
        pending.extend(reversed(node.children))
        if node.name == "[memory]":
            fields = node.extra_fields
            events.append(MemoryEvent(node.start_time_ns, fields.ptr, fields.alloc_size, fields.device.type))
    return sorted(events, key=lambda event: event.time_ns)


# ---- Operators: arguments by name ------------------------------------------------------------------------------------
# Relied on: `OpOverload._schema.arguments`, each with `name`, `has_default_value()` and `default_value`. Public helpers
# (`fx.Node.normalized_arguments`) need a root module and re-resolve the overload by type, per node.


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


# --- Inductor: code generation ---
# Relied on: the steps of `torch._inductor.compile_fx._InProcessFxCompile.codegen_and_compile` up to
# `GraphLowering.codegen` (view_to_reshape, fake propagation, original output strides, post-grad passes, GraphLowering,
# codegen), which must be taken in that order; that the output node's meta "user_visible_output_idxs" marks what must
# keep its strides; that `GraphLowering.bw_donated_idxs` says which backward inputs may be overwritten; that only
# `AsyncCompile.use_process_pool` and `VecISA.check_build` could start a compiler before the wrapper is executed.


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


# Configuration under which Inductor compiles or times kernels while it lowers; switched off in code generation alone.
_COMPILING_CONFIG = (
    "max_autotune",
    "max_autotune_gemm",
    "benchmark_fusion",
    "benchmark_combo_kernel",
    "benchmark_kernel",
    "pipeline_max_autotune_gemm",
    "triton.autotune_at_compile_time",
)
# Configuration that only dumps and logs.
_COSMETIC_CONFIG = {
    "trace.enabled": False,
    "trace.provenance_tracking_level": 0,
}


def inductor_compiling_config() -> tuple[str, ...]:
    """The entries of Inductor's configuration that are on now and that :func:`inductor_wrapper_code` switches off."""
    from torch._inductor import config

    return tuple(name for name in _COMPILING_CONFIG if getattr(config, name, False))


def inductor_unsupported_config() -> tuple[str, ...]:
    """The entries of Inductor's configuration that are on and under which no Python wrapper is generated."""
    from torch._inductor import config

    return tuple(name for name in ("cpp_wrapper", "fx_wrapper") if getattr(config, name))


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


def keeps_output_strides(*, is_backward: bool) -> bool:
    """Whether the current configuration makes outputs for the user keep the strides that eager would give them."""
    from torch._inductor import config

    return bool(config.bw_outputs_user_visible if is_backward else config.keep_output_stride)


def donates_buffers() -> bool:
    """Whether the backward may overwrite saved tensors that nobody else can see."""
    from torch._functorch import config

    return bool(config.donated_buffer)


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
def _no_compiler() -> Iterator[None]:
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
            for isa in cpu_vec_isa.supported_vec_isa_list:
                stack.enter_context(patch.object(type(isa), "__bool__", lambda *_: True))
            assumed = cpu_vec_isa.valid_vec_isa_list.__wrapped__()
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
        and all(not getattr(config, name) for name in _COSMETIC_CONFIG)
    )
    quiet: dict[str, Any] = {**_COSMETIC_CONFIG, **dict.fromkeys(inductor_compiling_config(), False)}
    if draft:
        quiet["cpp.simdlen"] = 1
    with (
        config.patch(quiet),
        garbage_left(),
        _disable_current_modes(),
        _use_lazy_graph_module(dynamo_config.use_lazy_graph_module),
        DebugContext(),
        origins_in_comments(),
        _no_compiler(),
        _counters_kept(),
        _runtime_asserts_kept(shape_env),
        preserve_rng_state(),
        torch.no_grad(),
    ):
        view_to_reshape(gm)  # type: ignore[no-untyped-call]
        traced_key = _traced_key(gm, inputs) if reusable else None
        fake_mode = compile_fx.fake_tensor_prop(gm, inputs)
        compile_fx._recursive_record_original_output_strides(gm)
        before_passes = counters["inductor"].copy()
        with V.set_fake_mode(fake_mode), compile_fx.get_cuda_device_context(gm):
            compile_fx._recursive_post_grad_passes(gm, is_inference=False)
        before_lowering = counters["inductor"].copy()
        if _has_attributes(gm):  # which passes have added
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
            key = _lowering_key(gm, inputs, graph) if reusable else None
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


# ---- Inductor: compiling what was generated before ------------------------------------------------------------------
# Relied on: `_InProcessFxCompile.codegen_and_compile` calls `view_to_reshape`, `fake_tensor_prop`, which fills in the
# nodes' fake values and gives their mode, and `_recursive_post_grad_passes`, which rewrites the graph; it builds
# `compile_fx.GraphLowering(gm, example_inputs=..., ...)`, all by these names, and then calls of it
# `freeze_runtime_asserts`, `run` and, in `compile_to_module`, `codegen`, in this order.


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
            if mode is None or self.traced_key is None or _traced_key(gm, inputs) != self.traced_key:
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
        if new.const_module is not None or _lowering_key(gm, example_inputs, new) != self.key:
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


def start_compiling(wrapper: str) -> None:
    """Hand the CPU kernels of a wrapper to Inductor's compile threads and come back at once.

    Whoever compiles the wrapper afterwards waits for these threads instead of starting its own. What goes wrong here
    goes wrong there again, where it is reported. Nothing is started where Inductor has one thread only, or is to use
    no cache: it would compile every kernel once more.

    Relied on: a wrapper defines such a kernel by ``name = async_compile.cpp_pybinding(argument types, source)``, all
    literals, and ``CppPythonBindingsCodeCache`` keeps what it has started under a key that these two make up.
    """
    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile, get_compile_threads
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    if get_compile_threads() <= 1 or config.force_disable_caches:
        return
    try:
        for node in ast.parse(wrapper).body:
            match node:
                case ast.Assign(value=ast.Call(func=ast.Attribute(attr="cpp_pybinding"), args=arguments)):
                    types, source = map(ast.literal_eval, arguments)
                    CppPythonBindingsCodeCache.load_pybinding_async(
                        types, source, submit_fn=AsyncCompile.submit
                    )
    except Exception as error:
        log.debug("kernels are not compiled ahead", exc_info=error)


def forget_compiled() -> None:
    """Inductor forgets what this process has compiled; what is on disk it finds again."""
    from torch._inductor.utils import clear_caches

    clear_caches()


def compiling_as_generated(lowered: LoweredGraph | None) -> AbstractContextManager[None]:
    """Inductor takes the code of this graph, if it is the graph that it compiles in this block, and does not generate
    it a second time."""
    return nullcontext() if lowered is None else lowered.taken()


def _traced_key(gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> tuple[object, ...] | None:
    """None where the graph has constants, which passes may fold, or bodies, which they rewrite, or where a size is
    symbolic."""
    return None if _has_attributes(gm) else _written_down(gm, inputs)


def _has_attributes(gm: torch.fx.GraphModule) -> bool:
    """Whether the graph reads anything but its inputs."""
    return any(node.op in ("get_attr", "call_module") for node in gm.graph.nodes)


def _lowering_key(gm: torch.fx.GraphModule, inputs: Sequence[Any], graph: Any) -> tuple[object, ...] | None:
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


def _output_strides(graph: Any, out: Any) -> tuple[int | torch.SymInt, ...] | None:
    from torch._inductor.ir import IRNode

    if not isinstance(out, IRNode) or not out.has_tensor_output():
        return None
    return tuple(_size(graph.sizevars, stride) for stride in out.get_layout().stride)


def _size(sizevars: Any, size: Any) -> int | torch.SymInt:
    expression = sizevars.remove_precomputed_replacements(sympy.sympify(size))
    hint = _hint(sizevars.shape_env, expression)
    if not expression.free_symbols:
        return hint
    return sizevars.shape_env.create_symintnode(expression, hint=hint)  # type: ignore[no-any-return]


# ---- Symbolic sizes --------------------------------------------------------------------------------------------------
# Relied on: a SymInt's node has its sympy expression and the ShapeEnv that knows its symbols; Inductor prints such an
# expression as Python. The ShapeEnv of a TracingContext stays usable after the compilation that it was made for.


def symbol_of(size: Any) -> str:
    """The name of the symbol that a SymInt is; "" if it is an expression, or no SymInt."""
    expression = size.node.expr if isinstance(size, torch.SymInt) else None
    return str(expression.name) if expression is not None and expression.is_Symbol else ""


def size_text(size: torch.SymInt | int) -> str:
    """A size as Python's arithmetic over symbols; "" if it depends on none."""
    from torch.utils._sympy.printers import PythonPrinter

    if not isinstance(size, torch.SymInt) or not size.node.expr.free_symbols:
        return ""
    return str(PythonPrinter().doprint(size.node.expr))  # type: ignore[no-untyped-call]


def hint_for(size: torch.SymInt, numbers: Mapping[str, int], unknown: int) -> int:
    """What a SymInt is if its symbols have these numbers; others have their hints, or are ``unknown``. No guard."""
    if not numbers and size.node._hint is not None:
        return int(size.node._hint)
    expression, env = size.node.expr, size.node.shape_env
    known = {s: sympy.Integer(numbers[s.name]) for s in expression.free_symbols if s.name in numbers}
    return _hint(env, expression.xreplace(known), unknown)


def _hint(env: Any, expression: sympy.Expr, unknown: int | None = None) -> int:
    """The number of an expression over the symbols of a ShapeEnv, which has a method for it since torch 2.13."""
    if hasattr(env, "optimization_hint"):
        return int(env.optimization_hint(expression, unknown))
    known = expression.xreplace(env.backed_var_to_val)
    return int(known.xreplace(dict.fromkeys(known.free_symbols, unknown)))


def hints_of_symbols(size: torch.SymInt, numbers: Mapping[str, int], unknown: int) -> dict[str, int]:
    """The same for each of its symbols, by name."""
    env = size.node.shape_env
    return {
        str(s.name): numbers[s.name] if s.name in numbers else _hint(env, s, unknown)
        for s in size.node.expr.free_symbols
    }


def size_sources() -> dict[str, str]:
    """Where the symbols of the graph that is being compiled come from, in Dynamo's words."""
    env = getattr(getattr(tracing_context(), "fake_mode", None), "shape_env", None)
    sources = getattr(env, "var_to_sources", {})
    return {symbol.name: found[0].name for symbol, found in sources.items() if found}


# ---- Inductor: the way in --------------------------------------------------------------------------------------------
# compile_fx(gm, inputs, inner_compile=..., config_patches=...) hands the joint graph, after its own joint-graph passes,
# to config.custom_partitioner_fn, and wraps inner_compile in the patches, so that they also hold for the backward,
# which is compiled when it first runs. A CustomPartitionerFn's uuid() goes into the keys of both caches.
# ShortenTraceback passes through Dynamo as it is, where any other exception comes out as BackendCompilerFailed.


def autograd_cache(on: bool) -> Any:
    """A context that turns AOTAutograd's cache off, if it is on; Inductor's cache of compiled graphs stays as it is."""
    from torch._functorch import config

    return config.patch(enable_autograd_cache=bool(config.enable_autograd_cache and on))


def buffer_reuse(on: bool) -> AbstractContextManager[None]:
    """A context in which Inductor's code hands no buffer on to another value, unless ``on``: then as configured."""
    from torch._inductor import config

    changed: AbstractContextManager[None] = config.patch(
        allow_buffer_reuse=bool(config.allow_buffer_reuse and on)
    )
    return changed


def cuda_graphs() -> Any:
    """A context in which Inductor records what it compiles for a GPU as CUDA graphs, whatever the backend."""
    from torch._inductor import config

    return config.patch({"triton.cudagraphs": True})


def max_autotune() -> Any:
    """A context in which Inductor times several kernels for each product and convolution, whatever the backend."""
    from torch._inductor import config

    return config.patch({"max_autotune": True})


def one_number_at_a_time(on: bool) -> Any:
    """A context in which a CUDA kernel draws each random number from its own position, if ``on``.

    Since torch 2.13 a kernel over one dimension draws four at once from every fourth position, and a kernel over two
    (a reduction, say) one: what is drawn again with the same seed in the other kind of kernel is something else.
    """
    if not on:
        return nullcontext()
    from torch._inductor.codegen.triton import TritonOverrides

    if not hasattr(TritonOverrides, "_can_use_4x_random"):
        return nullcontext()
    return patch.object(TritonOverrides, "_can_use_4x_random", lambda: False)


@contextmanager
def no_pattern_if(moves: Callable[[Sequence[torch.fx.Node]], bool]) -> Iterator[None]:
    """A context in which Inductor's passes over a partitioned graph leave alone the nodes of which ``moves`` says so.

    Relied on: each pattern of ``fx_passes.post_grad.pass_patterns`` is an object that decides in ``extra_check``, given
    a match with its nodes, whether to replace them, in the place of the last.
    """
    from torch._inductor.fx_passes import post_grad

    patterns = {
        id(entry): entry
        for patterns in post_grad.pass_patterns
        for entries in patterns.patterns.values()
        for entry in entries
    }

    def checked(check: Callable[[Any], bool], match: Any) -> bool:
        return not moves(match.nodes) and check(match)

    with ExitStack() as stack:
        for entry in patterns.values():
            stack.enter_context(patch.object(entry, "extra_check", partial(checked, entry.extra_check)))
        yield


def draws_four_numbers(source: str) -> bool:
    """Whether any kernel of generated code does what :func:`one_number_at_a_time` turns off."""
    return "rand4x(" in source or "randn4x(" in source


WRITE_OUT = "graphremat_write_out"
"""In a node's meta: its result gets a buffer of its own (:func:`results_written_out`), in one of these orders."""
ANY_ORDER = "in the order that Inductor prefers"
CHANNELS_LAST = "with the channels last, where convolutions are computed so"
APART = "in that order, and not as a part of a concatenation"
TRACED_STRIDES = "graphremat_traced_strides"
"""In a node's meta: the strides that its result must have (:func:`results_written_out`)."""
COMPUTED_AGAIN = "graphremat_computed_again"
"""In a node's meta: names of the pointwise operands that are computed for it alone (:func:`results_written_out`)."""


@contextmanager
def results_written_out(gm: torch.fx.GraphModule) -> Iterator[None]:
    """A context in which Inductor gives a buffer to the result of each node with the mark :data:`WRITE_OUT`, and
    computes anew what the mark :data:`COMPUTED_AGAIN` says. Its cache tells graphs apart by these marks.

    What an ``as_strided`` reads gets the strides of the mark :data:`TRACED_STRIDES`.

    Relied on: ``GraphLowering.run_node`` gives the ``TensorBox`` of a node, whose ``realize`` gives it a buffer, unless
    it is a view, which ``ExternKernel.copy_input`` copies. What an ``as_strided`` reads directly it gives the strides
    of the node's fake value, which follow those of the graph's inputs; ``as_strided`` is taken of what a view shows.
    Where ``GraphLowering.layout_opt`` is true, convolutions are computed with the channels last, and an image that has
    a buffer in another order is copied for them. Inductor's own mark ("inductor_realize_to_strides") demands the traced
    order, which is that other one; so does ``run_node`` of what a ``convolution_backward`` reads beside others, though
    that is lowered for the channels last. ``ConcatKernel`` has the order of the first part with a fixed layout, or that
    in which parts without a buffer were traced. It computes in its place what has no fixed layout yet, which
    ``ComputedBuffer.decide_layout`` gives it. A pointwise result without a buffer is a ``Pointwise`` in a
    ``StorageBox``: in another box it is another result; with a buffer it is left apart.
    """
    from torch._inductor.graph import GraphLowering
    from torch._inductor.ir import (
        NHWC_STRIDE_ORDER,
        BaseView,
        ComputedBuffer,
        ExternKernel,
        IRNode,
        Pointwise,
        StorageBox,
        TensorBox,
    )
    from torch._prims_common import make_channels_last_strides_for
    from torch.utils._ordered_set import OrderedSet

    keys = (WRITE_OUT, COMPUTED_AGAIN, TRACED_STRIDES)
    marks = [f"{node.name} {node.meta[key]}" for node in gm.graph.nodes for key in keys if key in node.meta]
    if not marks:
        yield
        return
    lower = GraphLowering.run_node

    def operands_anew(env: dict[torch.fx.Node, Any], node: torch.fx.Node) -> dict[torch.fx.Node, Any]:
        anew = {}
        for operand in node.all_input_nodes:
            box = env[operand].data if operand.name in node.meta.get(COMPUTED_AGAIN, ()) else None
            made = box.data if isinstance(box, StorageBox) else None
            if isinstance(made, Pointwise):
                anew[operand] = TensorBox(StorageBox(made))
            elif isinstance(made, ComputedBuffer):
                made.decide_layout()
        return anew

    def traced_with(node: torch.fx.Node, strides: Sequence[Any]) -> Any:
        val = node.meta["val"]
        return patch.dict(node.meta, val=val.as_strided(val.shape, strides))

    @contextmanager
    def traced_with_channels_last(node: torch.fx.Node) -> Iterator[None]:
        parts = node.all_input_nodes if node.target is torch.ops.aten.cat.default else ()
        with ExitStack() as stack:
            for image in (node, *parts):
                strides = make_channels_last_strides_for(image.meta["val"].shape)
                stack.enter_context(traced_with(image, strides))
            yield

    def run_node(self: Any, node: torch.fx.Node) -> object:
        operands = operands_anew(self.env, node)
        with_operands = patch.dict(self.env, operands) if operands else nullcontext()
        strides = node.meta.get(TRACED_STRIDES)
        as_image = (
            strides is None
            and node.meta.get(WRITE_OUT) == CHANNELS_LAST
            and self.layout_opt
            and node.meta["val"].dim() == 4
        )
        with (
            with_operands,
            traced_with_channels_last(node) if as_image else nullcontext(),
            nullcontext() if strides is None else traced_with(node, strides),
        ):
            result = lower(self, node)
        if strides and isinstance(result, TensorBox) and not isinstance(result.data, BaseView):
            result = ExternKernel.require_exact_strides(result, strides)
        if not node.meta.get(WRITE_OUT) or not isinstance(result, TensorBox):
            return result
        with IRNode.current_origins(OrderedSet([node])):  # by which the fence knows what the copy is
            if isinstance(result.data, BaseView):
                result = ExternKernel.copy_input(result)
            result.realize()
            made = result.data.data if isinstance(result.data, StorageBox) else None
            if node.meta[WRITE_OUT] == APART and isinstance(made, ComputedBuffer):
                made.decide_layout()
            if as_image:
                return ExternKernel.require_stride_order(result, NHWC_STRIDE_ORDER)
            return result

    tag = torch.compiler.config.cache_key_tag
    with (
        patch.object(GraphLowering, "run_node", run_node),
        torch.compiler.config.patch(cache_key_tag=f"{tag} writes out {' '.join(marks)}"),  # type: ignore[attr-defined]
    ):
        yield


def graph_cache_keyed_by_donation() -> Any:
    """A context in which Inductor's cache tells graphs apart that may overwrite other inputs.

    Its own key does not, in torch 2.13: a backward that was compiled to overwrite what is saved is taken out of the
    cache for one that runs with ``retain_graph=True``, and the second pass reads what the first has overwritten.
    """
    from torch._inductor.utils import get_donated_idxs

    tag = torch.compiler.config.cache_key_tag
    return torch.compiler.config.patch(cache_key_tag=f"{tag} overwrites {get_donated_idxs()}")  # type: ignore[attr-defined]


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


MOST_NODES_ABOVE = 4
"""Views that may stand between an output of a compiled function and its node."""


def is_static_input(tensor: torch.Tensor) -> bool:
    """Whether Dynamo takes the tensor as one that stays where it is from call to call: a parameter or a buffer."""
    return isinstance(tensor, torch.nn.Parameter) or hasattr(tensor, "_dynamo_static_input_type")


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


def inductor_choices(handler: Any) -> Any:
    """A context in which Inductor asks ``handler`` about fusion."""
    from torch._inductor.virtualized import V

    return V.set_choices_handler(handler)


def origin_names(scheduler_node: Any) -> list[str]:
    """Names of the FX nodes that a scheduler node computes, fused or not."""
    names: list[str] = []
    for part in scheduler_node.get_nodes():
        ir_node = part.node
        if ir_node is not None:
            names.extend(origin.name for origin in ir_node.get_origins())
    return sorted(set(names))


# ---- Inductor: which nodes a call of its code computes ---------------------------------------------------------------
# Relied on: a kernel's call is written right after `define_kernel(source, nodes, ...)` of the device's scheduling; a
# library's in `Scheduler.codegen_extern_call(node)`; a comment written before it stays before it. `CompiledFxGraph`
# calls the method `Runner.call` of the wrapper's module; where something stands between, it has the `cache_key` that
# the module is named after, unless caches are off, and `PyCodeCache` has that module.

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


# ---- Inductor: its decompositions ------------------------------------------------------------------------------------
# Relied on: `torch._inductor.decomposition.select_decomp_table()`, which AOTAutograd traces with under Inductor.


def inductor_decompositions() -> dict[Any, Any]:
    """What Inductor replaces operators with before a partitioner sees the joint graph; for ``make_fx``."""
    from torch._inductor.decomposition import select_decomp_table

    return dict(select_decomp_table())


# ---- Inductor: for tests -------------------------------------------------------------------------------------
# Relied on: `valid_vec_isa_list` and `cpp_compiler_search` are cached functions; `config.patch`, `config._config`.


def inductor_config(**changes: Any) -> AbstractContextManager[None]:
    """Inductor's configuration with some entries changed."""
    from torch._inductor import config

    changed: AbstractContextManager[None] = config.patch(changes)
    return changed


def run_and_get_code(run: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What ``run`` returns, and the wrappers that Inductor made meanwhile, in order."""
    from torch._inductor.utils import run_and_get_code as run_and_get

    result, sources = run_and_get(run)
    return result, list(sources)


def inductor_state() -> dict[str, str]:
    """Everything of Inductor and Dynamo that code generation could leave changed, as text."""
    from torch._dynamo.utils import counters
    from torch._inductor import async_compile, config, metrics
    from torch._inductor.virtualized import V

    context = torch._guards.TracingContext.try_get()
    return {
        "config": str({name: getattr(config, name) for name in vars(config)["_config"]}),
        "counters": str({name: dict(counter) for name, counter in counters.items()}),
        "metrics": str(
            {name: value for name, value in vars(metrics).items() if isinstance(value, (int, list))}
        ),
        "graph": str(type(V.graph)),
        "debug": str(type(V.debug)),
        "fake mode": str(id(V.fake_mode)),
        "context": str({name: id(value) for name, value in vars(context).items()})
        if context is not None
        else "",
        "kernels": str(async_compile.CompiledTritonKernels._cache),
    }


def forget_compiler() -> None:
    """Inductor will find out anew which C++ compiler there is and which vector instructions it knows."""
    from torch._inductor import cpp_builder, cpu_vec_isa

    cpp_builder.cpp_compiler_search.cache_clear()
    cpu_vec_isa.valid_vec_isa_list.cache_clear()


# ---- Modules without data --------------------------------------------------------------------------------------------
# Relied on: `Module.to`, `half`, `bfloat16`, `cuda` and the like are `self._apply(function of a tensor)`, which calls
# itself for the children.


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


# ---- For the benchmarks: torch's own budget, and joint graphs of networks that are never run -------------------------


def activation_memory_budget(fraction: float, solver: str = "dp") -> Any:
    """A context in which torch's partitioner works under its own budget, a fraction of the saved bytes, with the
    ``solver`` of its knapsack: ``"dp"``, ``"greedy"`` or ``"ilp"``."""
    from torch._functorch import config

    return config.patch(activation_memory_budget=fraction, activation_memory_budget_solver=solver)


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


def many_recompilations(limit: int = 256) -> None:
    """Let Dynamo keep many compiled versions of one function, as a comparison of backends in one process needs."""
    from torch._dynamo import config

    config.recompile_limit = limit
    config.accumulated_recompile_limit = limit
