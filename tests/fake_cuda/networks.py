"""Networks for a card alone: Triton kernels of one's own, as libraries of fused layers have them; flex attention."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import gelu

from bench.networks import Network
from bench.networks.parts import Inputs

BLOCK = 1024


@triton.jit
def silu_times(
    gate, value, out, count, BLOCK: tl.constexpr
):  # Inductor copies its source, without our imports
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, y = tl.load(gate + at, mask=at < count), tl.load(value + at, mask=at < count)
    tl.store(out + at, x * tl.sigmoid(x) * y, mask=at < count)


@triton.jit
def silu_times_backward(gate, value, tangent, of_gate, of_value, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, y = tl.load(gate + at, mask=at < count), tl.load(value + at, mask=at < count)
    by, share = tl.load(tangent + at, mask=at < count), tl.sigmoid(x)
    tl.store(of_gate + at, by * y * share * (1 + x * (1 - share)), mask=at < count)
    tl.store(of_value + at, by * x * share, mask=at < count)


class SiluTimes(torch.autograd.Function):
    """``silu(gate) * value`` in one kernel, and both derivatives in another."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(gate)
        silu_times[(triton.cdiv(gate.numel(), BLOCK),)](gate, value, out, gate.numel(), BLOCK=BLOCK)
        ctx.save_for_backward(gate, value)
        return out

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor, Tensor]:
        gate, value = ctx.saved_tensors
        found = torch.empty_like(gate), torch.empty_like(value)
        grid = (triton.cdiv(gate.numel(), BLOCK),)
        silu_times_backward[grid](gate, value, tangent.contiguous(), *found, gate.numel(), BLOCK=BLOCK)
        return found


class GatedBlock(nn.Module):
    """A gated feed-forward layer beside what it gets."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(SiluTimes.apply(self.gate(x), self.value(x)))  # type: ignore[no-untyped-call]


class Squares(nn.Sequential):
    """Layers, and the mean square of what comes out."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square().mean()  # type: ignore[no-any-return]


def gated(layers: int, width: int, hidden: int, batch: int) -> tuple[nn.Module, Inputs]:
    """The network and its input."""
    return Squares(*(GatedBlock(width, hidden) for _ in range(layers))), (torch.randn(batch, width),)


class FlexBlock(nn.Module):
    """Attention whose scores are changed by a function, and a feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.mixed = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        found = flex_attention(query, key, value, score_mod=lambda score, b, h, i, j: score + (i - j))
        assert isinstance(found, Tensor)
        x = x + self.mixed(found.transpose(1, 2).flatten(2))
        return x + self.outer(gelu(self.inner(x)))


def flex(layers: int, width: int, heads: int, batch: int, length: int) -> tuple[nn.Module, Inputs]:
    """The network and its input."""
    return Squares(*(FlexBlock(width, heads) for _ in range(layers))), (torch.randn(batch, length, width),)


USER_KERNELS = Network(
    "user_kernels",
    "gated layers by Triton kernels of one's own",
    gated,
    {"tiny": {"layers": 4, "width": 64, "hidden": 256, "batch": 4096}},
)
FLEX_ATTENTION = Network(
    "flex_attention",
    "transformer with flex attention",
    flex,
    {"tiny": {"layers": 3, "width": 64, "heads": 4, "batch": 8, "length": 256}},
)
FOR_A_CARD = {network.name: network for network in (USER_KERNELS, FLEX_ATTENTION)}
