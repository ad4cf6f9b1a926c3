"""Bytes that an op allocates for itself and frees before it returns: alive at the peak, but in no graph and no wrapper.

What of torch it relies on: the buffers of the CPU flash attention (aten/src/ATen/native/cpu/FlashAttentionKernel.cpp):
blocks of 512 keys by 32, 64 or 256 queries for each thread. Other ops with buffers of their own (convolutions through
oneDNN or cuDNN, sorting, matrix products through cuBLAS) choose them at run time and are not modelled.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

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
    model = _MODELS.get(op_name)
    return model(args) if model is not None else 0


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


_MODELS: dict[str, Callable[[Sequence[Any]], int]] = {
    "aten._scaled_dot_product_flash_attention_for_cpu.default": _flash_attention,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": _flash_attention_backward,
}
