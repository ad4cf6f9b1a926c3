"""Have Inductor give a buffer to each value that the plan counts one for. Knows FX.

Inductor repeats pointwise work in its readers, and decides reader by reader. What a kernel reads through a view, it
copies for the kernel, and lets the other readers repeat the work from operands that must then live on: an activation is
in memory twice, before and after its function. And of random numbers it keeps the 32-bit numbers, not the mask of one
byte each that is made of them. The replay counts one buffer: the value's own, which the kernel and all others read.

What one kernel alone reads is written when Inductor comes to that kernel. Where the plan makes it before another
kernel, what it is made of would live on until then.
"""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import fx

from graphremat.passes.kinds import problem_kind, replays_from_seed
from graphremat.passes.problem import Kind
from graphremat.passes.torch_private import SOURCE_OP, WRITE_OUT

REALIZE = "inductor_realize_to_strides"
"""Torch's mark in ``node.meta`` for a node whose result Inductor gives a buffer of the traced strides."""

CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


def keep_buffers(module: fx.GraphModule) -> None:
    """Mark pointwise results that a kernel reads, if they have several readers or another kernel runs before that one,
    and masks made of random numbers.

    Where there are convolutions, Inductor chooses the order of an image's channels: those that a convolution reads get
    their buffers in that order, so that it need not copy them, and the others are left alone.
    """
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    channels_move = any(node.target in CONVOLUTIONS for node in calls)
    kernels = 0
    before: dict[fx.Node, int] = {}
    """For each node, the kernels that run before it."""
    for node in calls:
        before[node] = kernels
        kernels += problem_kind(node) is Kind.KERNEL
    for node in calls:
        val = node.meta.get("val")
        if not isinstance(val, torch.Tensor) or problem_kind(node) is not Kind.FUSIBLE or not node.users:
            continue
        is_image = channels_move and val.dim() == 4
        if is_image and not any(user.target in CONVOLUTIONS for user in node.users):
            continue
        readers = list(_kernels_reading(node))
        waits = bool(readers) and min(before[reader] for reader in readers) > before[node]
        if waits or (len(node.users) > 1 and (is_mask(node) or readers)):
            node.meta[WRITE_OUT if is_image else REALIZE] = True


def write_out(module: fx.GraphModule, names: Collection[str]) -> None:
    """Mark the runs of these nodes of the joint graph: Inductor gives their results buffers (:attr:`Plan.written`)."""
    for node in module.graph.nodes:
        if node.meta.get(SOURCE_OP) in names:
            node.meta[WRITE_OUT] = True


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


def _kernels_reading(node: fx.Node) -> Iterator[fx.Node]:
    """The kernels that read a value, or a view of it."""
    for user in node.users:
        kind = problem_kind(user)
        if user.op != "call_function" or user.meta.get("val") is None:
            continue
        if kind is Kind.KERNEL:
            yield user
        elif kind is Kind.VIEW:
            yield from _kernels_reading(user)
