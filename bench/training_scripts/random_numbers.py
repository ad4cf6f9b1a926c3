"""Dropout in every form, and other draws."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.training_scripts.annotations import Checkpointed
from bench.training_scripts.parts import DRAWS, SCRIPTS, Compile, Script, drawing, gradients, step


class Noisy(nn.Module):
    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.noise = nn.Linear(32, 32), nn.Linear(32, 32), noise

    def forward(self, x: Tensor) -> Tensor:
        x = self.noise(torch.tanh(self.first(x)))
        return self.noise(torch.tanh(self.second(x)))


def noisy(noise: Callable[[Tensor], Tensor]) -> Script:
    return lambda compile_: step(compile_, Noisy(noise), torch.randn(8, 4, 32))


def _drop_by_multinomial(x: Tensor) -> Tensor:
    kept = torch.multinomial(torch.ones(x.shape[-1]), x.shape[-1] // 2)
    return x * torch.zeros(x.shape[-1]).scatter(0, kept, 1.0)


NOISE: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.3, training=True),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.3, training=True),
    "dropout1d": lambda x: F.dropout1d(x, 0.3),
    "rand_like": lambda x: x * torch.rand_like(x),
    "randn": lambda x: x + torch.randn(x.shape) * x,
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
    "bernoulli_in_place": lambda x: x * torch.empty_like(x).bernoulli_(0.5),
    "normal_in_place": lambda x: x * torch.empty_like(x).normal_(),
    "uniform_in_place": lambda x: x * torch.empty_like(x).uniform_(),
    "exponential": lambda x: x * torch.empty_like(x).exponential_(),
    "randint": lambda x: x * torch.randint(0, 3, x.shape),
    "randperm": lambda x: x[..., torch.randperm(x.shape[-1])] * x,
    "multinomial": _drop_by_multinomial,
    "rrelu": lambda x: F.rrelu(x, training=True),
    "gumbel_softmax": lambda x: F.gumbel_softmax(x, hard=True) * x,
}
for _name, _noise in NOISE.items():
    SCRIPTS[f"noise_{_name}"] = noisy(_noise)
    DRAWS.add(f"noise_{_name}")


@drawing
def dropout_in_attention(compile_: Compile) -> list[Tensor]:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(32, 96)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            return F.scaled_dot_product_attention(q, k, v, dropout_p=0.2, is_causal=True)

    return step(compile_, Attention(), torch.randn(2, 12, 32))


@drawing
def dropout_under_autocast(compile_: Compile) -> list[Tensor]:
    model = Checkpointed(lambda block, x: block(x), drop=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = compile_(model)(torch.randn(16, 32)).float().mean()
    loss.backward()
    return gradients(model)
