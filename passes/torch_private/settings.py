"""Inductor: the way in, its configuration and its caches.

Relied on: `compile_fx(gm, inputs, inner_compile=..., config_patches=...)` hands the joint graph, after its own
joint-graph passes, to `config.custom_partitioner_fn`, and wraps `inner_compile` in the patches, so that they also hold
for the backward, which is compiled when it first runs. A CustomPartitionerFn's `uuid()` goes into the keys of both
caches. ShortenTraceback passes through Dynamo as it is, where any other exception comes out as BackendCompilerFailed.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._inductor.choices import InductorChoices as InductorChoices
from torch._inductor.compile_fx import compile_fx as compile_fx
from torch._inductor.compile_fx import compile_fx_inner as compile_fx_inner
from torch._inductor.custom_graph_pass import CustomPartitionerFn as CustomPartitionerFn

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
COSMETIC_CONFIG = {
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


def keeps_output_strides(*, is_backward: bool) -> bool:
    """Whether the current configuration makes outputs for the user keep the strides that eager would give them."""
    from torch._inductor import config

    return bool(config.bw_outputs_user_visible if is_backward else config.keep_output_stride)


def donates_buffers() -> bool:
    """Whether the backward may overwrite saved tensors that nobody else can see."""
    from torch._functorch import config

    return bool(config.donated_buffer)


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


def activation_memory_budget(fraction: float, solver: str = "dp") -> Any:
    """A context in which torch's partitioner works under its own budget, a fraction of the saved bytes, with the
    ``solver`` of its knapsack: ``"dp"``, ``"greedy"`` or ``"ilp"``."""
    from torch._functorch import config

    return config.patch(activation_memory_budget=fraction, activation_memory_budget_solver=solver)


def graph_cache_keyed_by_donation() -> Any:
    """A context in which Inductor's cache tells graphs apart that may overwrite other inputs.

    Its own key does not, in torch 2.13: a backward that was compiled to overwrite what is saved is taken out of the
    cache for one that runs with ``retain_graph=True``, and the second pass reads what the first has overwritten.
    """
    from torch._inductor.utils import get_donated_idxs

    tag = torch.compiler.config.cache_key_tag
    return torch.compiler.config.patch(cache_key_tag=f"{tag} overwrites {get_donated_idxs()}")  # type: ignore[attr-defined]
