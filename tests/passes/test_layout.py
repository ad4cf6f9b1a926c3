"""Values whose memory is read: a compiler may lay them out otherwise once they are saved."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from graphremat.passes.classify import read_by_memory


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
