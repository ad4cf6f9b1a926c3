"""Values whose memory is read: a compiler may lay them out otherwise once they are saved."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from graphremat.passes.classify import read_by_memory, read_joint_graph


@pytest.mark.parametrize("views", [0, 1, 2])
def test_what_as_strided_reads_is_named_through_views(views: int) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        x = x * 2.0
        for _ in range(views):
            x = x.view(24).view(2, 12)
        return x.as_strided((4, 6), (6, 1)) + 1.0

    module = make_fx(function, tracing_mode="fake")(torch.randn(2, 12))
    assert [node.target for node in read_by_memory(module.graph)] == [torch.ops.aten.mul.Tensor]


def test_views_read_no_memory() -> None:
    module = make_fx(lambda x: (x * 2.0).view(24).view(4, 6).t() + 1.0, tracing_mode="fake")(
        torch.randn(2, 12)
    )
    assert read_by_memory(module.graph) == set()


def test_what_is_read_by_memory_is_not_saved() -> None:
    def joint(primals_1: torch.Tensor, tangents_1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inner = primals_1.sin()
        read = inner.as_strided((4, 6), (6, 1))
        return read.exp(), tangents_1 * read.cos()

    module = make_fx(joint, tracing_mode="fake")(torch.randn(2, 12), torch.randn(4, 6))
    found = read_joint_graph(module, num_forward_outputs=1, static_lifetime_input_indices=None)
    assert [node.target for node in found.unsavable] == [torch.ops.aten.sin.default]
