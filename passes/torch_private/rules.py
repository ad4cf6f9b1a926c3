"""Inductor's rules that are changed while it lowers a graph: what is fused, what gets a buffer, how numbers are drawn.

What each change relies on is said at its function.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch


def inductor_choices(handler: Any) -> Any:
    """A context in which Inductor asks ``handler`` about fusion."""
    from torch._inductor.virtualized import V

    return V.set_choices_handler(handler)


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


def draws_four_numbers(source: str) -> bool:
    """Whether any kernel of generated code does what :func:`one_number_at_a_time` turns off."""
    return "rand4x(" in source or "randn4x(" in source


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
