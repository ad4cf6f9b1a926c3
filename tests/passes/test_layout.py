"""What reads the memory of a value: rewritten where that is the same as reading its elements, else told apart."""

from collections.abc import Callable

import pytest
import torch
import torch.fx as fx
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from graphremat.passes.classify import free_of_layout


def traced(function: Callable[[Tensor], Tensor], x: Tensor) -> fx.GraphModule:
    return make_fx(function, tracing_mode="fake")(x)


@pytest.mark.parametrize("sizes", [(4, 6), (24,), (2, 3, 4)])
def test_a_dense_as_strided_becomes_a_view(sizes: tuple[int, ...]) -> None:
    x = torch.randn(2, 12)
    strides = torch.empty(sizes).stride()
    module = traced(lambda x: (x * 2.0).as_strided(sizes, strides) + 1.0, x)
    assert free_of_layout(module.graph) == set()
    module.recompile()
    assert not module.graph.find_nodes(op="call_function", target=torch.ops.aten.as_strided.default)
    assert torch.equal(module(x), (x * 2.0).view(sizes) + 1.0)


@pytest.mark.parametrize(
    ("sizes", "strides", "offset"), [((12, 2), (1, 12), 0), ((2, 6), (12, 1), 0), ((2, 11), (11, 1), 1)]
)
def test_what_reads_memory_otherwise_names_its_base(
    sizes: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> None:
    x = torch.randn(2, 12)
    module = traced(lambda x: (x * 2.0).view(24).as_strided(sizes, strides, offset) + 1.0, x)
    before = module(x)
    assert [node.target for node in free_of_layout(module.graph)] == [torch.ops.aten.mul.Tensor]
    module.recompile()
    assert torch.equal(module(x), before)
