"""What users say of checkpoints, themselves or through a library."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint as ckpt

from bench.training_scripts.parts import SCRIPTS, Compile, Script, drawing, mlp, script, step


class Checkpointed(nn.Module):
    def __init__(self, call: Callable[..., Tensor], drop: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Dropout(drop), nn.Linear(64, 32)) for _ in range(4)
        )
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + self.call(block, x)
        return x


@script
def checkpointed_blocks(compile_: Compile) -> list[Tensor]:
    return step(compile_, Checkpointed(partial(ckpt.checkpoint, use_reentrant=False)), torch.randn(16, 32))


@drawing
def checkpointed_dropout(compile_: Compile) -> list[Tensor]:
    model = Checkpointed(partial(ckpt.checkpoint, use_reentrant=False), drop=0.3)
    return step(compile_, model, torch.randn(16, 32))


@script
def reentrant_checkpoints(compile_: Compile) -> list[Tensor]:
    model = Checkpointed(partial(ckpt.checkpoint, use_reentrant=True))
    return step(compile_, model, torch.randn(16, 32, requires_grad=True))


@script
def checkpoint_sequential(compile_: Compile) -> list[Tensor]:
    layers = mlp()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> Tensor:
            return ckpt.checkpoint_sequential(self.layers, 2, x, use_reentrant=False)

    return step(compile_, Model(), torch.randn(16, 32))


def _policy(
    policy: ckpt.CheckpointPolicy, context: object, op: object, *args: object, **kwargs: object
) -> Any:
    matmul = (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
    return policy if op in matmul else ckpt.CheckpointPolicy.PREFER_RECOMPUTE


def selective(policy: ckpt.CheckpointPolicy) -> Script:
    def run(compile_: Compile) -> list[Tensor]:
        contexts = partial(ckpt.create_selective_checkpoint_contexts, partial(_policy, policy))
        call = partial(ckpt.checkpoint, use_reentrant=False, context_fn=contexts)
        return step(compile_, Checkpointed(call), torch.randn(16, 32))

    return run


for _each in ckpt.CheckpointPolicy:
    SCRIPTS[f"selective_{_each.name.lower()}"] = selective(_each)


@script
def checkpoint_wrapper(compile_: Compile) -> list[Tensor]:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper as wrap

    return step(compile_, nn.Sequential(*(wrap(layer) for layer in mlp())), torch.randn(16, 32))


class RegionBudget(nn.Module):
    """The whole forward under torch's own budget for a region."""

    def __init__(self, budget: float) -> None:
        super().__init__()
        self.body, self.budget = mlp(layers=6), budget

    def forward(self, x: Tensor) -> Tensor:
        with torch.autograd.graph.region_activation_memory_budget(self.budget):
            return self.body(x)


@script
def region_budget(compile_: Compile) -> list[Tensor]:
    # outside of a compiler the region raises, so eager runs the body alone
    torch.manual_seed(1)
    model = RegionBudget(0.1)
    call = compile_(model)
    return step(lambda _: model.body if call is model else call, model, torch.randn(16, 32))


@script
def a_view_that_checkpoints_share(compile_: Compile) -> list[Tensor]:
    """Each block looks anew at one table, as rotary embeddings do: the compiler makes one view of it for all."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.scale = mlp(layers=3), nn.Parameter(torch.ones(32))

        def forward(self, x: Tensor) -> Tensor:
            table = torch.cos(self.scale * 2)
            for layer in self.layers:
                x = ckpt.checkpoint(
                    lambda h, layer=layer: layer(h) * table.unsqueeze(0), x, use_reentrant=False
                )
            return x

    return step(compile_, Model(), torch.randn(16, 32))
