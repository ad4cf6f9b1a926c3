"""Have Inductor give a buffer to each value that the plan counts one for. Knows FX.

Inductor repeats pointwise work in its readers, and decides reader by reader. What a kernel reads through a view, it
copies for the kernel, and lets the other readers repeat the work from operands that must then live on: an activation is
in memory twice, before and after its function. And of random numbers it keeps the 32-bit numbers, not the mask of one
byte each that is made of them. The replay counts one buffer: the value's own, which the kernel and all others read.
"""

from collections.abc import Sequence

import torch
from torch import fx

from graphremat.passes.kinds import problem_kind, replays_from_seed
from graphremat.passes.problem import Kind

REALIZE = "inductor_realize_to_strides"
"""Torch's mark in ``node.meta`` for a node whose result Inductor gives a buffer of the traced strides."""

CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


def keep_buffers(module: fx.GraphModule) -> None:
    """Mark pointwise results with several readers that a kernel reads, and masks made of random numbers.

    Images are left alone where there are convolutions, since Inductor chooses the order of their channels.
    """
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    channels_move = any(node.target in CONVOLUTIONS for node in calls)
    for node in calls:
        val = node.meta.get("val")
        if not isinstance(val, torch.Tensor) or (channels_move and val.dim() == 4):
            continue
        if problem_kind(node) is not Kind.FUSIBLE or len(node.users) < 2:
            continue
        if is_mask(node) or any(_is_read_by_kernel(user) for user in node.users):
            node.meta[REALIZE] = True


def moves_a_kernel(nodes: Sequence[fx.Node]) -> bool:
    """Whether one op in the place of the last of these nodes runs a kernel of theirs behind others that are between.

    Inductor makes one op of a product and an addition. The gradient of an embedding whose weight is also the last
    layer's is such a sum, of the first product of the backward and of its very last result: in one, the gradient of the
    logits would live until then.
    """
    matched = sorted(nodes)
    kernels = [node for node in matched[:-1] if problem_kind(node) is Kind.KERNEL]
    node = kernels[0].next if kernels else matched[-1]
    while node is not matched[-1]:
        if node not in matched and problem_kind(node) is Kind.KERNEL:
            return True
        node = node.next
    return False


def is_mask(node: fx.Node) -> bool:
    """Whether the node makes something of random numbers that are drawn from a seed."""
    return any(replays_from_seed(operand) for operand in node.all_input_nodes)


def _is_read_by_kernel(user: fx.Node) -> bool:
    """Whether a user of a value is a kernel of its own, or a view that one reads."""
    kind = problem_kind(user)
    if user.op != "call_function" or user.meta.get("val") is None:
        return False
    return kind is Kind.KERNEL or (kind is Kind.VIEW and any(map(_is_read_by_kernel, user.users)))
