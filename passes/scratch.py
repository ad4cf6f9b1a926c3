"""Bytes that an op allocates for itself and frees before it returns: alive at the peak, but in no graph and no wrapper.

What of torch it relies on: the buffers of the CPU flash attention (aten/src/ATen/native/cpu/FlashAttentionKernel.cpp):
blocks of 512 keys by 32, 64 or 256 queries for each thread. Convolutions go through oneDNN, which chooses its buffers
by shape, layout and processor; they are found by running the op once on memory of the shapes and layouts that
Inductor's code has. On a GPU that is done for convolutions and attention. Where no GPU is there to run them, the
backward of flash attention is known by its formula (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp,
``mha_bwd``): sums of the query's gradient and one number a query, both in float32, lengths rounded up to 128. Matrix
products have a workspace that stays (cuBLAS's, 32 MiB on sm_90), so it is no part of a step. Other ops with buffers of
their own (sorting) are not modelled.
"""

import logging
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from torch.profiler import ProfilerActivity, profile

from graphremat.passes.sizes import rounded_up
from graphremat.passes.torch_private import (
    MemoryEvent,
    disable_current_modes,
    profiled_memory_events,
    profiler_is_running,
)

logger = logging.getLogger(__name__)

_KEY_BLOCK = 512


CONVOLUTIONS = ("aten.convolution.default", "aten.convolution_backward.default")
_MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(args: Sequence[Any], held: Sequence[bool]) -> tuple[list[Any], list[torch.Tensor]]:
    """The operands of a convolution as Inductor's code for the CPU hands them over, and those that it copies for that.

    Images and weights lie channels last there (``GraphLowering.decide_layout_opt``). What the graph computes is written
    in that order to begin with; what the caller holds is copied before each convolution, and again in the backward.

    Args:
        args: the operands, of which only shapes, strides and dtypes are read.
        held: of each, whether the caller holds it.
    """
    made, copies = list(args), []
    for place, arg in enumerate(args):
        order = _MEMORY_FORMATS.get(arg.dim()) if isinstance(arg, torch.Tensor) else None
        if order is None or arg.is_contiguous(memory_format=order):
            continue
        made[place] = torch.empty(arg.shape, dtype=arg.dtype, device="meta").contiguous(memory_format=order)
        if held[place]:
            copies.append(made[place])
    return made, copies


def scratch_bytes(op_name: str, args: Sequence[Any], device_type: str = "cpu", *, probes: bool = True) -> int:
    """What the op allocates inside, beside its outputs, when it runs on the device; 0 for an op that isn't modelled.

    Args:
        op_name: the overload's name, as ``"aten._scaled_dot_product_flash_attention_for_cpu.default"``.
        args: its positional arguments; only shapes, strides and dtypes are read.
        device_type: ``"cpu"`` or ``"cuda"``; nothing is known of others.
        probes: whether the op may be run to find out.

    >>> query = torch.empty(4, 8, 256, 64, device="meta")
    >>> size = scratch_bytes("aten._scaled_dot_product_flash_attention_for_cpu.default", [query] * 3)
    >>> size // torch.get_num_threads()
    82432
    """
    if probes and op_name in _PROBED.get(device_type, ()):
        if profiler_is_running():  # torch has one profiler, and what is not known now may be known later
            return 0
        probed = _probed(op_name, tuple(_described(arg) for arg in args), device_type)
        if probed is not None:
            return probed
    model = _MODELS.get((device_type, op_name))
    return model(args) if model is not None else 0


def spare_bytes(op_name: str, args: Sequence[Any], device_type: str = "cpu") -> int:
    """By how much the storage of the op's result is larger than the result, for as long as that lives: a loss that is
    one number lies where the losses of all elements were.

    Args:
        op_name, args, device_type: as for :func:`scratch_bytes`.
    """
    if (
        device_type != "cpu"
        or op_name not in _LOSSES
        or _reduction(args, _LOSSES[op_name][0]) == _ALL_ELEMENTS
    ):
        return 0
    return int((args[0].numel() - 1) * args[0].element_size())


_ATTENTIONS = tuple(
    f"aten._scaled_dot_product_{kind}_attention{direction}.default"
    for kind in ("flash", "efficient", "cudnn")
    for direction in ("", "_backward")
)
_PROBED = {"cpu": CONVOLUTIONS, "cuda": (*CONVOLUTIONS, *_ATTENTIONS)}
_Described: TypeAlias = tuple[str, Hashable]


def _described(arg: Any) -> _Described:
    if isinstance(arg, torch.Tensor):
        return "tensor", (tuple(arg.shape), tuple(arg.stride()), arg.dtype)
    return "value", tuple(arg) if isinstance(arg, (list, tuple)) else arg


@cache
def _probed(op_name: str, described: tuple[_Described, ...], device_type: str) -> int | None:
    """Bytes over its outputs that one run of the op takes, by the allocator's events.

    The first run sets the library up and is not looked at. None where it cannot be run: no such device is there, or it
    has no room.
    """
    op = getattr(torch.ops.aten, op_name.split(".")[1]).default
    try:
        with torch.no_grad(), disable_current_modes():
            args = [_real(kind, content, device_type) for kind, content in described]
            op(*args)
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
                outputs = op(*args)
    except (AssertionError, RuntimeError) as error:  # the first where torch was built without CUDA
        told = "%s cannot be run alone on %s, so its buffers are not known: %s"
        logger.info(told, op_name, device_type, error)
        return None
    made = [t for t in (outputs if isinstance(outputs, tuple) else (outputs,)) if isinstance(t, torch.Tensor)]
    events = [e for e in profiled_memory_events(recorded) if e.device_type == device_type]
    return bytes_beside(events, {t.untyped_storage().data_ptr() for t in made})


def bytes_beside(events: Iterable[MemoryEvent], results: Collection[int]) -> int:
    """The most that is alive at once of what the allocator's events tell of, less the blocks left at the addresses
    ``results``: these may lie where a buffer was that has been freed."""
    alive, highest = 0, 0
    latest: dict[int, int] = {}
    for event in events:
        alive += event.nbytes
        highest = max(highest, alive)
        if event.nbytes > 0:
            latest[event.address] = event.nbytes
    return max(0, highest - sum(latest.get(address, 0) for address in results))


def _real(kind: str, content: Any, device_type: str) -> Any:
    if kind == "tensor":
        shape, stride, dtype = content
        return torch.empty_strided(shape, stride, dtype=dtype, device=device_type)
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


def _flash_attention_backward_on_cuda(args: Sequence[Any]) -> int:
    query = args[1]
    batch, heads, length, width = query.shape
    rows = batch * heads * rounded_up(length, 128)
    return int(rows * (rounded_up(width, 32 if width <= 128 else 64) + 1) * 4)


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


def _number(args: Sequence[Any]) -> int:
    """A number as an operand, which torch makes a tensor of one float64 or int64; where the op computes in another
    type, the number again in that one, and the tensor as well if it is in a third."""
    tensor, number = args[:2]
    if not isinstance(tensor, torch.Tensor) or not isinstance(number, (int, float)):
        return 0
    computed, given = (
        torch.result_type(tensor, number),
        torch.float64 if isinstance(number, float) else torch.int64,
    )
    converted = (computed != given) + (computed != tensor.dtype) * tensor.numel()
    return given.itemsize + int(converted) * computed.itemsize


def _mean(args: Sequence[Any]) -> int:
    """A sum that is divided by a number; of half precision both are in float32 first."""
    tensor, dims = args[0], args[1] if len(args) > 1 and args[1] else range(args[0].dim())
    if tensor.element_size() >= 4:
        return _number([tensor, 1])
    means = tensor.numel() // math.prod(tensor.shape[dim] for dim in dims)
    return int(tensor.numel() + means) * 4


def _dropout_backward(args: Sequence[Any]) -> int:
    """The mask in the gradient's dtype, and the scale as a number."""
    gradient, _, scale = args
    return int(gradient.numel() * gradient.element_size()) + _number([gradient, float(scale)])


def _layer_norm_backward(args: Sequence[Any]) -> int:
    """Each thread sums the gradients of weight and bias by itself."""
    return int(torch.get_num_threads() * 2 * math.prod(args[2]) * args[0].element_size())


_WITH_NUMBER = (
    *(f"{name}.{overload}" for name in ("add", "sub", "mul", "div") for overload in ("Tensor", "Scalar")),
    *(f"{name}.Scalar" for name in ("rsub", "remainder", "eq", "ne", "lt", "le", "gt", "ge")),
)

_LOSSES = {
    "aten.mse_loss.default": (2, True),
    "aten.smooth_l1_loss.default": (2, True),
    "aten.soft_margin_loss.default": (2, False),
    "aten.binary_cross_entropy.default": (3, False),
}
"""For each loss that is first computed of all elements, in the storage of its result: where its reduction is among the
arguments, and whether the losses of all are in memory twice while they are reduced."""


def _loss(op_name: str, args: Sequence[Any]) -> int:
    place, twice = _LOSSES[op_name]
    reduction = _reduction(args, place)
    if reduction == _ALL_ELEMENTS:
        return 0
    losses = args[0]
    size = losses.element_size() * (losses.numel() if twice else 1)
    return int(size) + (_mean([losses]) if reduction == _MEAN else 0)


def _reduction(args: Sequence[Any], place: int) -> int:
    return int(args[place]) if len(args) > place else _MEAN


_ALL_ELEMENTS, _MEAN = 0, 1
"""torch's numbers of reductions (``aten/src/ATen/core/Reduction.h``); 2 is the sum."""

_MODELS: dict[tuple[str, str], Callable[[Sequence[Any]], int]] = {
    ("cpu", "aten._scaled_dot_product_flash_attention_for_cpu.default"): _flash_attention,
    ("cpu", "aten._scaled_dot_product_flash_attention_for_cpu_backward.default"): _flash_attention_backward,
    ("cpu", "aten.native_dropout.default"): _dropout,
    ("cpu", "aten.native_dropout_backward.default"): _dropout_backward,
    ("cpu", "aten.native_layer_norm_backward.default"): _layer_norm_backward,
    ("cpu", "aten.mean.dim"): _mean,
    ("cpu", "aten.mean.default"): _mean,
    ("cuda", "aten._scaled_dot_product_flash_attention_backward.default"): _flash_attention_backward_on_cuda,
    **{("cpu", f"aten.{name}"): _number for name in _WITH_NUMBER},
    **{("cpu", name): partial(_loss, name) for name in _LOSSES},
}
