"""What a kernel of the user's own writes over: graphs made by hand, with a stand-in for the call of the kernel."""

from collections.abc import Callable

import pytest
import torch
from torch import fx

from graphremat.passes.kinds import is_overwritten

LOGITS = torch.empty(4, 6)


def triton_kernel_wrapper_functional(**_: object) -> None: ...


def logits_for(
    view: Callable[[torch.Tensor], torch.Tensor] | None, written: list[str], *, read_again: bool = False
) -> fx.Node:
    """A node whose result a kernel gets, through a view or as it is."""
    graph = fx.Graph()
    logits = graph.call_function(torch.ops.aten.relu.default, (graph.placeholder("x"),))
    logits.meta["val"] = LOGITS
    operand = logits
    if view is not None:
        seen = view(LOGITS)
        arguments = (logits, seen.shape, seen.stride(), seen.storage_offset())
        operand = graph.call_function(torch.ops.aten.as_strided.default, arguments)
        operand.meta["val"] = seen
    graph.call_function(
        triton_kernel_wrapper_functional,
        kwargs={"kwargs": {"logits": operand, "count": 24}, "tensors_to_clone": written},
    )
    if read_again:
        graph.call_function(torch.ops.aten.relu.default, (logits,))
    return logits


@pytest.mark.parametrize("view", [None, lambda x: x.view(2, 12), lambda x: x.t()])
def test_a_kernel_writes_over_what_it_alone_reads(
    view: Callable[[torch.Tensor], torch.Tensor] | None,
) -> None:
    assert is_overwritten(logits_for(view, ["logits"]))
    assert not is_overwritten(logits_for(view, []))
    assert not is_overwritten(logits_for(view, ["logits"], read_again=True))


def test_a_part_is_not_the_whole() -> None:
    assert not is_overwritten(logits_for(lambda x: x[:2], ["logits"]))
