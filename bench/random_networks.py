"""Random networks from a grammar of the ops that people use, for the fuzzer.

A *program* is data: a width, and steps of an op and the places of its operands among the values so far. Every value is
``(batch, length, width)``, so every program is a valid network, and a smaller one is found by leaving steps out. No op
lets values grow without bound.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Apply = Callable[..., Tensor]


@dataclass(frozen=True)
class Op:
    """One op of the grammar.

    Attributes:
        make: the width to a function or module of ``operands`` values.
        operands: how many values it reads.
        draws: whether it draws random numbers.
        workspace: whether its eager kernels allocate inside, where a dry run of whole operators cannot see it.
    """

    make: Callable[[int], Apply]
    operands: int = 1
    draws: bool = False
    workspace: bool = False


@dataclass(frozen=True)
class Step:
    """An op by name and its operands, counted back from the newest value (0)."""

    op: str
    operands: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Program:
    """A network as data.

    Attributes:
        width: of every value; a multiple of 4.
        steps: what is computed, in order, from the network's input.
        outputs: the values that the loss reads, counted back from the newest.
        frozen: whether the first module's parameters take no gradient.
    """

    width: int
    steps: tuple[Step, ...]
    outputs: tuple[int, ...] = (0,)
    frozen: bool = False

    @property
    def draws(self) -> bool:
        """Whether a step of training draws random numbers."""
        return any(OPS[step.op].draws for step in self.steps)

    @property
    def has_workspaces(self) -> bool:
        """Whether eager kernels allocate more than their results."""
        return any(OPS[step.op].workspace for step in self.steps)


class RandomNetwork(nn.Module):
    """The network of a program: ``(batch, length, width)`` to a list of the outputs."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        made = [OPS[step.op].make(program.width) for step in program.steps]
        self.calls: list[Apply] = made
        self.parts = nn.ModuleList(call for call in made if isinstance(call, nn.Module))
        if program.frozen and len(self.parts) > 1:
            self.parts[0].requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        values = [x]
        for step, call in zip(self.program.steps, self.calls, strict=True):
            values.append(call(*(values[-1 - place % len(values)] for place in step.operands)))
        return [values[-1 - place % len(values)] for place in self.program.outputs]


class _Attention(nn.Module):
    def __init__(self, width: int, *, causal: bool = False, drop: float = 0.0) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.causal, self.drop = causal, drop

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (p.unflatten(-1, (4, -1)).transpose(1, 2) for p in self.mix(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal, dropout_p=self.drop)
        return self.out(mixed.transpose(1, 2).flatten(2))


class _HandAttention(nn.Module):
    """Attention from matmuls and softmax, with a mask."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) / x.shape[-1] ** 0.5
        mask = torch.ones_like(scores, dtype=torch.bool).tril()
        return scores.masked_fill(~mask, -1e4).softmax(-1) @ x


class _FeedForward(nn.Module):
    def __init__(self, width: int, drop: float = 0.0, factor: int = 4) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, factor * width), nn.Linear(factor * width, width)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.drop(F.gelu(self.up(x))))


class _Gated(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class _Checkpointed(nn.Module):
    def __init__(self, width: int, drop: float = 0.0) -> None:
        super().__init__()
        self.body = _FeedForward(width, drop)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=False)  # type: ignore[no-any-return]


class _Twice(nn.Module):
    """One module with shared weights, called twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.tanh(self.body(x)))


class _Convolution(nn.Module):
    def __init__(self, width: int, groups: int = 1) -> None:
        super().__init__()
        self.body = nn.Conv1d(width, width, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class _BatchNorm(nn.Module):
    """Changes its buffers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(0, 1)).view_as(x)  # type: ignore[no-any-return]


class _Counter(nn.Module):
    """Overwrites a buffer that it reads as well."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        out = x - self.mean
        self.mean.mul_(0.9).add_(x.detach().mean((0, 1)), alpha=0.1)
        return out


class _Scale(nn.Module):
    """A zero-dim parameter and one over the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.all = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.one.tanh() + self.all


class _Lookup(nn.Module):
    """Integers from values, and an embedding of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(16, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table((x[..., 0].detach().abs() * 8).long().clamp(0, 15))


class _LowPrecision(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return torch.tanh(self.body(x)).float()


class _HandMadeGradient(torch.autograd.Function):
    """A square with a clipped gradient."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.tanh(x) ** 2

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        t = torch.tanh(x)
        return (gradient * 2 * t * (1 - t * t)).clamp(-1, 1)


def _in_place(x: Tensor) -> Tensor:
    out = x * 1.5
    out[:, :1] = 0.0
    return out.mul_(0.5).relu_()


def _detached_branch(x: Tensor) -> Tensor:
    with torch.no_grad():
        factor = x.abs().amax(-1, keepdim=True) + 1.0
    return x / factor


def _best(x: Tensor) -> Tensor:
    values, places = x.topk(2, dim=-1)
    return x.scatter(-1, places, values * 0.5)


def _of(function: Callable[..., Tensor]) -> Callable[[int], Apply]:
    return lambda _: function


OPS: dict[str, Op] = {
    # one value in, pointwise
    "relu": Op(_of(torch.relu)),
    "gelu": Op(_of(F.gelu)),
    "silu": Op(_of(F.silu)),
    "tanh": Op(_of(torch.tanh)),
    "sigmoid": Op(_of(torch.sigmoid)),
    "softplus": Op(_of(F.softplus)),
    "sine": Op(_of(torch.sin)),
    "leaky": Op(_of(lambda x: F.leaky_relu(x, 0.1))),
    "clamp": Op(_of(lambda x: x.clamp(-1, 1))),
    "where": Op(_of(lambda x: torch.where(x > 0, x, 0.1 * x))),
    "half_and_back": Op(_of(lambda x: x.bfloat16().sin().float())),
    "in_place": Op(_of(_in_place)),
    "detached_branch": Op(_of(_detached_branch)),
    "hand_made_gradient": Op(_of(_HandMadeGradient.apply)),
    # norms, reductions, orders
    "layer_norm": Op(nn.LayerNorm),
    "rms_norm": Op(nn.RMSNorm),
    "batch_norm": Op(_BatchNorm, workspace=True),
    "group_norm": Op(lambda width: nn.Sequential(_Transposed(nn.GroupNorm(2, width)))),
    "softmax": Op(_of(lambda x: x.softmax(-1))),
    "log_softmax": Op(_of(lambda x: x.log_softmax(-1) / 8)),
    "normalize": Op(_of(lambda x: F.normalize(x, dim=-1))),
    "centre": Op(_of(lambda x: x - x.mean(1, keepdim=True))),
    "cumulative": Op(_of(lambda x: x.cumsum(1) / x.shape[1])),
    "sorted": Op(_of(lambda x: x.sort(-1).values)),
    "best": Op(_of(_best)),
    "pooled": Op(_of(lambda x: F.max_pool1d(x.transpose(1, 2), 3, 1, 1).transpose(1, 2))),
    # views and moves
    "transposed_twice": Op(_of(lambda x: torch.tanh(x.transpose(1, 2)).transpose(1, 2))),
    "regrouped": Op(_of(lambda x: x.unflatten(-1, (4, -1)).flip(-2).flatten(-2))),
    "rolled": Op(_of(lambda x: x.roll(1, 1))),
    "halves_swapped": Op(_of(lambda x: torch.cat(x.chunk(2, -1)[::-1], -1))),
    "first_spread": Op(_of(lambda x: x[:, :1].expand_as(x) + x)),
    "contiguous": Op(_of(lambda x: x.transpose(0, 1).contiguous().transpose(0, 1))),
    # with parameters
    "linear": Op(lambda width: nn.Linear(width, width)),
    "feed_forward": Op(_FeedForward),
    "gated": Op(_Gated),
    "twice": Op(_Twice),
    "scale": Op(_Scale),
    "lookup": Op(_Lookup),
    "low_precision": Op(_LowPrecision, workspace=True),
    "convolution": Op(_Convolution, workspace=True),
    "depthwise": Op(lambda width: _Convolution(width, groups=width), workspace=True),
    "attention": Op(_Attention, workspace=True),
    "causal_attention": Op(lambda width: _Attention(width, causal=True), workspace=True),
    "hand_attention": Op(_HandAttention),
    "counter": Op(_Counter),
    "checkpointed": Op(_Checkpointed),
    # random
    "dropout": Op(lambda _: nn.Dropout(0.2), draws=True, workspace=True),
    "alpha_dropout": Op(lambda _: nn.AlphaDropout(0.2), draws=True, workspace=True),
    "noise": Op(_of(lambda x: x + 0.1 * torch.randn_like(x)), draws=True, workspace=True),
    "mask": Op(_of(lambda x: x * torch.bernoulli(torch.full_like(x, 0.8))), draws=True, workspace=True),
    "dropout_attention": Op(lambda width: _Attention(width, drop=0.2), draws=True, workspace=True),
    "dropout_feed_forward": Op(lambda width: _FeedForward(width, 0.2), draws=True, workspace=True),
    "dropout_checkpointed": Op(lambda width: _Checkpointed(width, 0.2), draws=True, workspace=True),
    # two values in
    "add": Op(_of(torch.add), 2),
    "multiply": Op(_of(lambda x, y: torch.tanh(x) * y), 2),
    "maximum": Op(_of(torch.maximum), 2),
    "gate": Op(_of(lambda x, y: torch.sigmoid(x) * y + x), 2),
    "product": Op(_of(lambda x, y: (x @ y.transpose(1, 2)).tanh() @ y / y.shape[1]), 2),
    "outer_mean": Op(_of(lambda x, y: x * y.mean((1, 2), keepdim=True)), 2),
}
"""The grammar. ``draws`` ops allocate in their eager kernels as well."""


class _Transposed(nn.Module):
    """A module over ``(batch, width, length)``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]
