"""Autocast, half precision, scaled losses."""

import torch
from torch import Tensor, nn

from bench.training_scripts.parts import Compile, gradients, mlp, script, step


@script
def autocast_outside(compile_: Compile) -> list[Tensor]:
    model = mlp()
    compiled = compile_(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = compiled(torch.randn(16, 32)).float().pow(2).mean()
    loss.backward()
    return gradients(model)


@script
def autocast_inside_with_an_fp32_island(compile_: Compile) -> list[Tensor]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = mlp(), mlp(layers=1)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                x = self.first(x)
                with torch.autocast("cpu", enabled=False):
                    return self.last(x.float()).softmax(-1)

    return step(compile_, Model(), torch.randn(16, 32))


@script
def half_precision_parameters(compile_: Compile) -> list[Tensor]:
    return step(compile_, mlp().to(torch.bfloat16), torch.randn(16, 32, dtype=torch.bfloat16))


@script
def grad_scaler_and_master_weights(compile_: Compile) -> list[Tensor]:
    model = mlp()
    compiled, scaler = compile_(model), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        with torch.autocast("cpu", torch.float16):
            loss = compiled(torch.randn(16, 32)).float().pow(2).mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return [p.detach() for p in model.parameters()]
