"""Have Inductor give a buffer to each value that the plan counts one for. Knows FX.

Inductor repeats pointwise work in its readers, and decides reader by reader. What a kernel reads through a view, it
copies for the kernel, and lets the other readers repeat the work from operands that must then live on: an activation is
in memory twice, before and after its function. And of random numbers it keeps the 32-bit numbers, not the mask of one
byte each that is made of them. The replay counts one buffer: the value's own, which the kernel and all others read.

Where convolutions are computed with the channels last, an image that they read lies in that order from the start, and
is written as an image though it be computed in another shape: else it would be copied for them, some of it twice.

What one kernel alone reads is written when Inductor comes to that kernel. Where the plan makes it before another
kernel, what it is made of would live on until then.

A reduction over a few elements Inductor computes anew in what reads it. Where that is behind another kernel, all that
is reduced would live until then: the gradient of a bias that all layers add to their attention is the sum of what each
layer gives, and all of these would be summed over the batch at the end only; the places of the largest in a pooling
that the backward runs again are looked for in its whole input when the gradient comes.

What is concatenated Inductor computes in its place of the whole. If it is read before, or again when nobody needs the
whole any more, the whole would live as long as its part. So it gets a buffer of its own, if it has one in the plan, or
else is computed for the whole alone and again for the others.
"""

import operator
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import fx

from graphremat.passes.costs import tensor_bytes
from graphremat.passes.kinds import op_name, problem_kind, replays_from_seed
from graphremat.passes.problem import Kind
from graphremat.passes.torch_private import (
    ANY_ORDER,
    APART,
    CHANNELS_LAST,
    COMPUTED_AGAIN,
    SOURCE_OP,
    TRACED_STRIDES,
    WRITE_OUT,
)

REALIZE = "inductor_realize_to_strides"
"""Torch's mark in ``node.meta`` for a node whose result Inductor gives a buffer of the traced strides."""

WORTH_A_KERNEL = 0.01
"""Reductions of less than this share of the bytes of a graph's largest value are left to Inductor."""

CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


def keep_buffers(module: fx.GraphModule) -> None:
    """Mark pointwise results that a kernel reads, if they have several readers or another kernel runs before that one,
    masks made of random numbers, and what is reduced and read behind another kernel.

    Where there are convolutions, Inductor chooses the order of an image's channels: those that a convolution reads get
    their buffers in that order, views of what has none included, so that it need not copy them, and the others are left
    alone, but for the results of a reduction that gives several.
    """
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    channels_move = any(node.target in CONVOLUTIONS for node in calls)
    kernels = 0
    before: dict[fx.Node, int] = {}
    """For each node, the kernels that run before it."""
    for node in calls:
        before[node] = kernels
        kernels += problem_kind(node) is Kind.KERNEL
    worth_it = WORTH_A_KERNEL * max(map(_bytes_of, calls), default=0)
    for node in calls:
        val = node.meta.get("val")
        kind = problem_kind(node)
        if not isinstance(val, torch.Tensor) or not node.users:
            continue
        is_image = channels_move and val.dim() == 4
        reduction = _reduction_behind(node)
        is_read_as_image = is_image and any(user.target in CONVOLUTIONS for user in node.users)
        if is_image and not is_read_as_image and reduction in (None, node):
            continue
        if kind is Kind.VIEW and reduction is None:
            if is_image and _shows_no_buffer(node):
                node.meta[WRITE_OUT] = CHANNELS_LAST
            continue
        if kind is not Kind.FUSIBLE:
            if is_read_as_image and len(node.users) > 1:  # has a buffer anyway
                node.meta[WRITE_OUT] = CHANNELS_LAST
            elif (
                reduction is not None
                and max(map(_bytes_of, reduction.all_input_nodes), default=0) >= worth_it
                and any(before.get(reader, kernels) > before[node] for reader in _readers(node))
            ):
                node.meta[WRITE_OUT] = ANY_ORDER
            continue
        readers = list(_kernels_reading(node))
        waits = bool(readers) and min(before[reader] for reader in readers) > before[node]
        if waits or (len(node.users) > 1 and (is_mask(node) or readers)):
            if is_image:
                node.meta[WRITE_OUT] = CHANNELS_LAST
            else:
                node.meta[REALIZE] = True
    _keep_parts_apart(calls)
    _keep_traced_orders(calls)


def _reduction_behind(node: fx.Node) -> fx.Node | None:
    """The reduction that a node is, or one of whose results it is; None for any other node."""
    source = node.args[0] if node.target is operator.getitem else node
    return source if isinstance(source, fx.Node) and problem_kind(source) is Kind.REDUCTION else None


def _shows_no_buffer(view: fx.Node) -> bool:
    """Whether a view is all that reads a pointwise result: the gradient of a group norm, say, which is computed in
    another shape than the image's. It would be written in that shape, and copied for a convolution."""
    shown = view.args[0]
    while isinstance(shown, fx.Node) and shown.op == "call_function" and len(shown.users) == 1:
        kind = problem_kind(shown)
        if kind is not Kind.VIEW:
            return kind is Kind.FUSIBLE and not shown.meta.get(REALIZE)
        shown = shown.args[0]
    return False


def _keep_parts_apart(calls: Sequence[fx.Node]) -> None:
    """Mark the pointwise results that are read before what they are concatenated to is there, or when nobody needs it
    any more; or else the concatenation. Constants, of which many share one, are left alone."""
    order = {node: place for place, node in enumerate(calls)}
    for node in calls:
        if op_name(node) != "aten.cat":
            continue
        inside = problem_kind(node) is Kind.FUSIBLE
        for part in node.all_input_nodes:
            is_computed = part.op == "call_function" and problem_kind(part) is Kind.FUSIBLE
            if not is_computed or not part.all_input_nodes or part.meta.get(REALIZE):
                continue
            reads = [order.get(reader, len(calls)) for reader in _readers(part)]
            needed = max((order.get(reader, len(calls)) for reader in _readers(node)), default=order[node])
            if order[node] <= min(reads) and max(reads) <= needed:
                continue
            if inside and not any(_kernels_reading(part)):
                node.meta[COMPUTED_AGAIN] = (*node.meta.get(COMPUTED_AGAIN, ()), part.name)
            else:
                part.meta.setdefault(WRITE_OUT, APART)


def _keep_traced_orders(calls: Sequence[fx.Node]) -> None:
    """Mark what an ``as_strided`` reads, be it through views: it must lie as it was traced.

    Strides are written down in the graph. Saved values that convolutions are computed with come to the backward with
    the channels last, and so does what is made of them: the scale of a group norm would be read at other places.
    """
    for node in calls:
        shown = node.args[0] if op_name(node) == "aten.as_strided" else None
        while isinstance(shown, fx.Node) and isinstance(val := shown.meta.get("val"), torch.Tensor):
            shown.meta[TRACED_STRIDES] = val.stride()
            is_view = shown.op == "call_function" and problem_kind(shown) is Kind.VIEW
            shown = shown.args[0] if is_view else None


def write_out(module: fx.GraphModule, names: Collection[str]) -> None:
    """Mark the runs of these nodes of the joint graph: Inductor gives their results buffers (:attr:`Plan.written`).

    Where convolutions alone read one, it is what they read that is written: the gradient of a group norm, say, is
    computed in another shape than the image's, and would be in memory in both.
    """
    for node in module.graph.nodes:
        if node.meta.get(SOURCE_OP) in names:
            images = _images_of(node)
            for image in images:
                image.meta[WRITE_OUT] = CHANNELS_LAST
            if not images:
                node.meta.setdefault(WRITE_OUT, ANY_ORDER)  # what is kept apart is in that order too


def _images_of(node: fx.Node) -> list[fx.Node]:
    """What convolutions read of a value: it, or else those of its views; empty if anything besides reads them."""
    if any(user.target in CONVOLUTIONS for user in node.users):
        return [node]
    found: list[fx.Node] = []
    for user in node.users:
        images = _images_of(user) if problem_kind(user) is Kind.VIEW else []
        if not images:
            return []
        found += images
    return found


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


def _bytes_of(node: fx.Node) -> int:
    """Of the tensor that a node gives, by the sizes that are assumed; 0 of anything else."""
    val = node.meta.get("val")
    return tensor_bytes(val) if isinstance(val, torch.Tensor) and val.layout is torch.strided else 0


def is_mask(node: fx.Node) -> bool:
    """Whether the node makes something of random numbers that are drawn from a seed."""
    return any(replays_from_seed(operand) for operand in node.all_input_nodes)


def _kernels_reading(node: fx.Node) -> Iterator[fx.Node]:
    """The kernels that read a value, or a view of it."""
    readers = (user for user in _readers(node) if user.op == "call_function")
    return (user for user in readers if problem_kind(user) is Kind.KERNEL)


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """What reads a value or a view of it, the graph's output included."""
    for user in node.users:
        if user.op != "call_function":
            yield user
        elif user.meta.get("val") is None:
            continue
        elif problem_kind(user) is Kind.VIEW:
            yield from _readers(user)
        else:
            yield user
