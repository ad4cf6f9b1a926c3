"""What the scripts are made of: their registry, small modules, and one step of training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Compile = Callable[..., Any]
Script = Callable[[Compile], list[Tensor]]

SCRIPTS: dict[str, Script] = {}
DRAWS: set[str] = set()
"""Scripts that draw random numbers inside what is compiled."""
NEEDS: dict[str, str] = {}
"""The library that a script needs, where it needs one."""


def script(function: Script) -> Script:
    SCRIPTS[function.__name__] = function
    return function


def drawing(function: Script) -> Script:
    DRAWS.add(function.__name__)
    return script(function)


def mlp(width: int = 32, layers: int = 4, activation: Callable[[], nn.Module] = nn.GELU) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(width, width), activation()) for _ in range(layers)))


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def step(compile_: Compile, model: nn.Module, *inputs: Tensor, **options: object) -> list[Tensor]:
    loss = compile_(model, **options)(*inputs).float().pow(2).mean()
    loss.backward()
    return [loss.detach(), *gradients(model)]


class Around(nn.Module):
    """Something between two linear layers."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.middle = nn.Linear(32, 32), nn.Linear(32, 32), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(torch.tanh(self.first(x))))
