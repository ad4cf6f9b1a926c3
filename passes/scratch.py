"""Bytes that an op allocates for itself and frees before it returns: alive at the peak, but in no graph and no wrapper.

What of torch it relies on: the buffers of the CPU flash attention (aten/src/ATen/native/cpu/FlashAttentionKernel.cpp):
blocks of 512 keys by 32, 64 or 256 queries for each thread. Convolutions go through oneDNN, which chooses its buffers
by shape, layout and processor; they are found by running the op once on memory of the same shapes. Other ops with
buffers of their own (sorting, matrix products through cuBLAS, convolutions through cuDNN) are not modelled.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any, TypeAlias

import torch
from torch.profiler import ProfilerActivity, profile

from graphremat.passes.torch_private import disable_current_modes, profiled_memory_events, profiler_is_running

_KEY_BLOCK = 512


def scratch_bytes(op_name: str, args: Sequence[Any]) -> int:
    """What the op allocates inside, beside its outputs, when it runs on the CPU; 0 for an op that isn't modelled.

    Args:
        op_name: the overload's name, as ``"aten._scaled_dot_product_flash_attention_for_cpu.default"``.
        args: its positional arguments; only shapes, strides and dtypes are read.

    >>> query = torch.empty(4, 8, 256, 64, device="meta")
    >>> size = scratch_bytes("aten._scaled_dot_product_flash_attention_for_cpu.default", [query] * 3)
    >>> size // torch.get_num_threads()
    82432
    """
    if op_name in _PROBED:
        return _probed(op_name, tuple(_described(arg) for arg in args))
    model = _MODELS.get(op_name)
    return model(args) if model is not None else 0


_PROBED = {
    "aten.convolution.default": torch.ops.aten.convolution.default,
    "aten.convolution_backward.default": torch.ops.aten.convolution_backward.default,
}
_Described: TypeAlias = tuple[str, Hashable]


def _described(arg: Any) -> _Described:
    if isinstance(arg, torch.Tensor):
        return "tensor", (tuple(arg.shape), tuple(arg.stride()), arg.dtype)
    return "value", tuple(arg) if isinstance(arg, (list, tuple)) else arg


@cache
def _probed(op_name: str, described: tuple[_Described, ...]) -> int:
    """Bytes over its outputs that one run of the op takes, by the allocator's events.

    The first run sets the library up and is not looked at. Nothing is known, and 0 is given, while somebody else
    profiles this process: torch has one profiler.
    """
    if profiler_is_running():
        return 0
    with torch.no_grad(), disable_current_modes():
        args = [_real(kind, content) for kind, content in described]
        _PROBED[op_name](*args)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            outputs = _PROBED[op_name](*args)
        made = [t for t in (outputs if isinstance(outputs, tuple) else (outputs,)) if t is not None]
        output_bytes = sum(int(t.untyped_storage().nbytes()) for t in made)
    alive, highest = 0, 0
    for event in profiled_memory_events(recorded):
        alive += event.nbytes
        highest = max(highest, alive)
    return max(0, highest - output_bytes)


def _real(kind: str, content: Any) -> Any:
    if kind == "tensor":
        shape, stride, dtype = content
        return torch.empty_strided(shape, stride, dtype=dtype)
    return list(content) if isinstance(content, tuple) else content


def _flash_attention(args: Sequence[Any]) -> int:
    query, key = args[0], args[1]
    queries, keys = _blocks(query, key)
    exact = _exact_itemsize(query)
    per_thread = (queries * keys + 2 * queries + queries * query.shape[3]) * exact
    if query.element_size() < exact:
        per_thread += queries * keys * query.element_size()
    return torch.get_num_threads() * int(per_thread)


def _flash_attention_backward(args: Sequence[Any]) -> int:
    gradient, query, key = args[0], args[1], args[2]
    queries, keys = _blocks(query, key)
    exact = _exact_itemsize(query)
    threads = torch.get_num_threads()
    size = threads * 2 * queries * keys * exact
    if query.element_size() < exact:
        size += threads * 2 * queries * keys * query.element_size()
    size += min(threads, query.shape[0] * query.shape[1]) * queries * exact
    if not gradient.transpose(1, 2).is_contiguous():
        size += gradient.numel() * gradient.element_size()
    return int(size)


def _blocks(query: torch.Tensor, key: torch.Tensor) -> tuple[int, int]:
    """Queries and keys that a thread works on at once."""
    length = query.shape[2]
    if length >= 768:
        block = 256
    elif length >= 192:
        block = 64
    else:
        block = 32
    return min(block, length), min(_KEY_BLOCK, key.shape[2])


def _exact_itemsize(tensor: torch.Tensor) -> int:
    """Bytes of a number that sums of the tensor's numbers are kept in."""
    return max(4, tensor.element_size())


def _dropout(args: Sequence[Any]) -> int:
    """The mask, which is boolean, as numbers of the input's dtype: what the CPU multiplies with."""
    return int(args[0].numel() * args[0].element_size()) if args[1] and args[2] is not False else 0


_MODELS: dict[str, Callable[[Sequence[Any]], int]] = {
    "aten._scaled_dot_product_flash_attention_for_cpu.default": _flash_attention,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": _flash_attention_backward,
    "aten.native_dropout.default": _dropout,
}
