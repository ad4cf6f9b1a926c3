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

# Inductor copies a kernel's source without what this module imports: no annotations but Triton's.


@triton.jit
def silu_times(gate, value, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(gate + at, mask=at < count).to(tl.float32)
    y = tl.load(value + at, mask=at < count).to(tl.float32)
    tl.store(out + at, x * tl.sigmoid(x) * y, mask=at < count)


@triton.jit
def silu_times_backward(gate, value, tangent, of_gate, of_value, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(gate + at, mask=at < count).to(tl.float32)
    y = tl.load(value + at, mask=at < count).to(tl.float32)
    by = tl.load(tangent + at, mask=at < count).to(tl.float32)
    share = tl.sigmoid(x)
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


@triton.jit
def row_losses(logits, targets, losses, words, rows, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    here = at < words
    x = tl.load(logits + row * words + at, mask=here, other=float("-inf"))
    target = tl.load(targets + row)
    shares = tl.exp(x - tl.max(x, 0))
    shares = shares / tl.sum(shares, 0)
    tl.store(losses + row, -tl.log(tl.sum(tl.where(at == target, shares, 0.0), 0)) / rows)
    tl.store(logits + row * words + at, (shares - tl.where(at == target, 1.0, 0.0)) / rows, mask=here)


class FusedLoss(torch.autograd.Function):
    """Mean cross entropy; its kernel writes the gradient of the logits over them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        rows, words = logits.shape
        losses = torch.empty(rows, dtype=logits.dtype, device=logits.device)
        row_losses[(rows,)](logits, targets, losses, words, rows, BLOCK=triton.next_power_of_2(words))
        ctx.save_for_backward(logits)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * tangent, None


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


class GatedClassifier(nn.Module):
    """Gated layers and the loss of what class they tell, both by kernels of one's own."""

    def __init__(self, layers: int, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(GatedBlock(width, hidden) for _ in range(layers)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(self.blocks(x)).flatten(0, 1)
        return FusedLoss.apply(logits, targets.flatten())  # type: ignore[no-any-return, no-untyped-call]


def gated(
    layers: int, width: int, hidden: int, classes: int, batch: int, length: int
) -> tuple[nn.Module, Inputs]:
    """The network and its inputs."""
    inputs = torch.randn(batch, length, width), torch.randint(classes, (batch, length))
    return GatedClassifier(layers, width, hidden, classes), inputs


class FlexBlock(nn.Module):
    """Attention whose scores are changed by a function, and a feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
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
    "gated layers and a loss by Triton kernels of one's own",
    gated,
    {"tiny": {"layers": 4, "width": 64, "hidden": 256, "classes": 512, "batch": 16, "length": 256}},
)
FLEX_ATTENTION = Network(
    "flex_attention",
    "transformer with flex attention",
    flex,
    {"tiny": {"layers": 3, "width": 64, "heads": 4, "batch": 8, "length": 256}},
)
FOR_A_CARD = {network.name: network for network in (USER_KERNELS, FLEX_ATTENTION)}
