"""Floating point operations of one node, from its operands' shapes alone.

torch's own formulas (:data:`torch.utils.flop_counter.flop_registry`) serve where they are right. Ours cover what they
do not know (attention on the CPU, grouped matmuls) or what they overestimate: causal attention, and the weight gradient
of grouped convolutions, which torch counts ``groups`` times.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry

from graphremat.passes.hints import SizeHint, default_size_hint
from graphremat.passes.kinds import argument, op_name, tensors_in


def shape_of(node: Any, hint: SizeHint) -> tuple[int, ...]:
    """Sizes of a node's (first) tensor.

    Raises:
        ValueError: it has no tensor.
    """
    tensors = tensors_in(node.meta.get("val")) if isinstance(node, fx.Node) else []
    if not tensors:
        raise ValueError(f"{node} has no tensor")
    return tuple(hint(size) for size in tensors[0].shape)


def node_flops(node: fx.Node, hint: SizeHint = default_size_hint) -> int | None:
    """FLOPs of a node (a multiply-add counts two), or None if no formula knows its operator."""
    name = op_name(node)
    if name in _FORMULAS:
        return _FORMULAS[name](node, hint)
    formula = flop_registry.get(getattr(node.target, "overloadpacket", node.target))
    if formula is None:
        return None
    args, kwargs, out = fx.node.map_arg(
        (node.args, node.kwargs, node), lambda n: _concrete(n.meta.get("val"), hint)
    )
    return max(0, hint(formula(*args, **kwargs, out_val=out)))


def _concrete(value: Any, hint: SizeHint) -> Any:
    """The value with symbolic sizes replaced by hints; a formula that branches on a size must not add a guard."""
    if isinstance(value, torch.Tensor):
        if all(isinstance(size, int) for size in value.shape):
            return value
        return torch.empty([hint(size) for size in value.shape], dtype=value.dtype, device="meta")
    if isinstance(value, (list, tuple)):
        return type(value)(_concrete(item, hint) for item in value)
    return hint(value) if isinstance(value, torch.SymInt) else value


def attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *, causal: bool, backward: bool
) -> int:
    """FLOPs of fused attention on ``[..., heads, tokens, width]`` operands.

    Forward is two matmuls per head; backward computes the scores again and has four more. A causal mask halves both
    (exactly: ``(tokens + 1) / (2 tokens)``; kernels work on whole blocks, so the half is a lower bound).
    """
    heads = prod(query[:-2])
    width, tokens, value_width, keys = query[-1], query[-2], value[-1], key[-2]
    score = 2 * heads * tokens * keys * width
    mix = 2 * heads * tokens * keys * value_width
    total = 3 * score + 2 * mix if backward else score + mix
    return total // 2 if causal else total


def _attention(node: fx.Node, hint: SizeHint) -> int:
    causal = argument(node, "is_causal") is True
    backward = "backward" in op_name(node)
    query, key, value = (shape_of(argument(node, name), hint) for name in ("query", "key", "value"))
    return attention_flops(query, key, value, causal=causal, backward=backward)


def _token_major_attention(node: fx.Node, hint: SizeHint) -> int:
    """Attention on ``[batch, tokens, heads, width]``, or packed sequences ``[tokens, heads, width]``.

    Packed sequences are taken to be as long as the longest: an upper bound, as lengths are data.
    """
    query, key, value = (shape_of(argument(node, name), hint) for name in ("query", "key", "value"))
    if len(query) == 3:
        longest = [argument(node, name) for name in ("max_q", "max_k")]
        lengths = [hint(n.meta["val"] if isinstance(n, fx.Node) else n) if n else 0 for n in longest]
        batch = max(1, query[0] // max(1, lengths[0]))
        query, key, value = (
            (batch, length or shape[0], *shape[1:])
            for shape, length in zip((query, key, value), (lengths[0], lengths[1], lengths[1]), strict=True)
        )
    query, key, value = ((*s[:-3], s[-2], s[-3], s[-1]) for s in (query, key, value))
    causal = argument(node, "is_causal") is True or argument(node, "custom_mask_type") in (1, 2)
    return attention_flops(query, key, value, causal=causal, backward="backward" in op_name(node))


def _flex_attention(node: fx.Node, hint: SizeHint) -> int:
    """Flex attention; which blocks its mask skips is data, so all are counted."""
    query, key, value = (shape_of(operand, hint) for operand in node.args[:3])
    return attention_flops(query, key, value, causal=False, backward="backward" in op_name(node))


def _convolution_flops(node: fx.Node, signal: tuple[int, ...], weight: tuple[int, ...]) -> int:
    """One multiply-add per weight and position of ``signal``: the output, or the input of a transposed convolution."""
    return 2 * signal[0] * prod(signal[2:]) * prod(weight)


def _convolution(node: fx.Node, hint: SizeHint) -> int:
    weight = shape_of(argument(node, "weight"), hint)
    moved = argument(node, "input") if argument(node, "transposed") is True else node
    return _convolution_flops(node, shape_of(moved, hint), weight)


def _convolution_backward(node: fx.Node, hint: SizeHint) -> int:
    """The gradients of input and weight each take as many FLOPs as the forward; the bias's is a sum."""
    weight = shape_of(argument(node, "weight"), hint)
    moved = argument(node, "input" if argument(node, "transposed") is True else "grad_output")
    mask = argument(node, "output_mask")
    wanted = sum(1 for want in mask[:2] if want) if isinstance(mask, (list, tuple)) else 2
    return wanted * _convolution_flops(node, shape_of(moved, hint), weight)


def grouped_mm_flops(a: Sequence[int], b: Sequence[int]) -> int:
    """FLOPs of a matmul per group; operands without a group axis are cut up among the groups along rows, columns or
    depth.

    >>> rows_cut, columns_cut = grouped_mm_flops((10, 4), (3, 4, 5)), grouped_mm_flops((3, 5, 4), (4, 10))
    >>> rows_cut == columns_cut == 2 * 10 * 4 * 5
    True
    """
    return 2 * prod(a[1:] if len(a) > len(b) else a) * b[-1]


def _grouped_mm(node: fx.Node, hint: SizeHint) -> int:
    return grouped_mm_flops(shape_of(node.args[0], hint), shape_of(node.args[1], hint))


def _grouped_mm_backward(node: fx.Node, hint: SizeHint) -> int:
    """The gradients of both operands, each as many FLOPs as the forward."""
    return 2 * _grouped_mm(node, hint)


_FORMULAS: Mapping[str, Callable[[fx.Node, SizeHint], int]] = {
    **{
        f"aten._scaled_dot_product_{name}{direction}": _attention
        for name in (
            "flash_attention_for_cpu",
            "flash_attention",
            "efficient_attention",
            "cudnn_attention",
            "fused_attention_overrideable",
        )
        for direction in ("", "_backward")
    },
    "aten._flash_attention_forward": _token_major_attention,
    "aten._flash_attention_backward": _token_major_attention,
    "aten._efficient_attention_forward": _token_major_attention,
    "aten._efficient_attention_backward": _token_major_attention,
    "flex_attention": _flex_attention,
    "flex_attention_backward": _flex_attention,
    "aten.convolution": _convolution,
    "aten._convolution": _convolution,
    "aten.convolution_backward": _convolution_backward,
    "aten._grouped_mm": _grouped_mm,
    "aten._scaled_grouped_mm": _grouped_mm,
    "transformers.grouped_mm_fallback": _grouped_mm,
    "transformers.grouped_mm_fallback_backward": _grouped_mm_backward,
}
