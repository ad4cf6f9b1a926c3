"""Operators with graphs inside, and code that asks the data which way to go: what they take inside is counted."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import graphremat
from graphremat.measure import measure_peak


class Wide(nn.Module):
    """One branch is sixteen times as wide as the other; which one runs depends on the sum of the batch."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 16 * width), nn.Linear(16 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = torch.cond(
            x.sum() > 0,
            lambda t: self.down(torch.tanh(self.up(t))),
            lambda t: t.cos() * 2,
            (h,),
        )
        return self.last(h).square().mean()


class Nested(nn.Module):
    """Three calls of one region, which is wide inside."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.ups = nn.ParameterList(torch.randn(width, 16 * width) / 8 for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        @torch.compiler.nested_compile_region
        def region(h: Tensor, up: Tensor) -> Tensor:
            return torch.tanh(h @ up) @ up.t()

        for up in self.ups:
            x = region(x, up)
        return x.square().mean()


class CheckpointedDropout(nn.Module):
    """Dropout inside of checkpoints: the compiler keeps the state of the random generator."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        def block(layer: nn.Module, x: Tensor) -> Tensor:
            return F.dropout(torch.tanh(layer(x)), 0.5)

        for layer in self.layers:
            x = x + checkpoint(block, layer, x, use_reentrant=False)
        return x.square().mean()


def promised_and_measured(model: nn.Module, x: Tensor, lowering: str) -> tuple[int, int]:
    torch.compiler.reset()
    options = {"lowering": lowering, "on_failure": "error"}
    call = torch.compile(model, backend="graphremat", options=options)
    call(x).backward()
    peak = measure_peak(
        lambda: call(x).backward(), clear=lambda: model.zero_grad(set_to_none=True)
    ).peak_bytes
    report = graphremat.last_report()
    assert not report.unfollowed
    return report.generated_peak_bytes, peak + sum(t.nbytes for t in (x, *model.parameters()))


LOWERINGS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_the_branch_that_takes_more_is_counted(lowering: str) -> None:
    model, x = Wide(), torch.rand(256, 64)
    promised, measured = promised_and_measured(model, x, lowering)
    assert promised == measured > 3_000_000
    call = torch.compile(model, backend="graphremat", options={"lowering": lowering})
    narrow = measure_peak(
        lambda: call(-x).backward(), clear=lambda: model.zero_grad(set_to_none=True)
    ).peak_bytes
    assert narrow < measured / 2


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_what_a_nested_region_takes_inside_is_counted(lowering: str) -> None:
    promised, measured = promised_and_measured(Nested(), torch.randn(256, 64), lowering)
    assert promised == measured > 2_000_000


def test_what_a_kept_random_state_draws_is_counted() -> None:
    promised, measured = promised_and_measured(CheckpointedDropout(), torch.randn(8, 64, 64), "aot_eager")
    assert promised == measured
