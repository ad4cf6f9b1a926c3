"""The only part of the project that imports or reaches into private parts of torch; all others import from here.

One module a topic, each with what we rely on, so that a new torch release is checked in one place.
"""

from torch._functorch._aot_autograd.utils import _is_primal as is_primal
from torch._functorch.partitioners import force_save_bw_mutation_src as force_save_backward_mutation_source
from torch._functorch.partitioners import min_cut_rematerialization_partition as torch_partition
from torch._library.utils import is_builtin as is_builtin_operator

from graphremat.passes.torch_private.code_generation import WrapperCode, inductor_wrapper_code, no_compiler
from graphremat.passes.torch_private.compiler import (
    forget_compiled,
    forget_compiler,
    start_asking_compiler,
    start_compiling,
    wait_for_compiler,
)
from graphremat.passes.torch_private.for_tests import (
    compiler_answering,
    inductor_config,
    inductor_state,
    run_and_get_code,
    vector_instructions,
)
from graphremat.passes.torch_private.joint_graph import (
    REGION_BUDGET_KEY,
    HigherOrderOperator,
    InputMutationAOTOutput,
    NodeInfo,
    OpOverload,
    classify_nodes,
    cleanup_recompute_tags,
    copy_graph_module,
    default_partition,
    extract_forward_backward,
    first_user_output,
    force_save_collectives,
    force_save_effectful_ops,
    functionalize_rng_ops,
    fx_graph_cse,
    has_recomputable_ops,
    has_recomputable_rng_ops,
    inductor_decompositions,
    is_assert_only_symbool,
    is_opaque_node,
    is_sym_node,
    make_graph_module,
    must_recompute,
    mutated_inputs,
    operator_arguments,
    thread_graphsafe_rng_from_hops,
    trace_joint_graph,
)
from graphremat.passes.torch_private.lowered_graph import (
    LoweredGraph,
    compiling_as_generated,
    kernel_metrics,
)
from graphremat.passes.torch_private.origins import (
    ORIGINS,
    SOURCE_OP,
    origin_names,
    origins_in_comments,
    wrapper_function,
)
from graphremat.passes.torch_private.recording import (
    MemoryEvent,
    after_next_backward,
    profiled_memory_events,
    profiler_is_running,
    trace_artifact,
)
from graphremat.passes.torch_private.rules import (
    ANY_ORDER,
    APART,
    CHANNELS_LAST,
    COMPUTED_AGAIN,
    TRACED_STRIDES,
    WRITE_OUT,
    draws_four_numbers,
    inductor_choices,
    no_pattern_if,
    one_number_at_a_time,
    results_written_out,
)
from graphremat.passes.torch_private.settings import (
    CustomPartitionerFn,
    InductorChoices,
    activation_memory_budget,
    autograd_cache,
    buffer_reuse,
    compile_fx,
    compile_fx_inner,
    cuda_graphs,
    donates_buffers,
    graph_cache_keyed_by_donation,
    inductor_compiling_config,
    inductor_unsupported_config,
    keeps_output_strides,
    max_autotune,
)
from graphremat.passes.torch_private.sizes import (
    hint_for,
    hints_of_symbols,
    size_sources,
    size_text,
    symbol_of,
)
from graphremat.passes.torch_private.tracing import (
    MOST_NODES_ABOVE,
    FakeTensorMode,
    ShortenTraceback,
    aot_autograd,
    boxed,
    compiled_graphs,
    compiled_node,
    disable_current_modes,
    ends_in_graph_break,
    is_static_input,
    many_recompilations,
    modules_changed_without_data,
    saved_tensors,
    storage_key,
    traced_inputs,
    tracing_anew,
    tracing_context,
)
