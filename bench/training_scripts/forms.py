"""How steps are put together: accumulation, adapters, hooks, several losses."""

from typing import Any

import torch
from torch import Tensor, nn

from bench.training_scripts.parts import Around, Compile, gradients, mlp, script, step


@script
def accumulation_without_freeing_gradients(compile_: Compile) -> list[Tensor]:
    model = mlp()
    compiled, optimizer = compile_(model), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=False)
        for _ in range(2):
            compiled(torch.randn(8, 32)).pow(2).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@script
def several_backwards(compile_: Compile) -> list[Tensor]:
    model = mlp()
    loss = compile_(model)(torch.randn(8, 32)).pow(2).mean()
    loss.backward(retain_graph=True)
    loss.backward()
    return gradients(model)


@script
def second_order_gradients(compile_: Compile) -> list[Tensor]:
    model, x = mlp(activation=nn.Tanh), torch.randn(8, 32, requires_grad=True)
    loss = compile_(model)(x).pow(2).mean()
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    first.pow(2).sum().backward()
    return gradients(model)


@script
def low_rank_adapters(compile_: Compile) -> list[Tensor]:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(32, 32).requires_grad_(False)
            self.down, self.up = nn.Linear(32, 4, bias=False), nn.Linear(4, 32, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.base(x) + self.up(self.down(x)))

    return step(compile_, nn.Sequential(*(Adapted() for _ in range(3))), torch.randn(8, 32))


@script
def tied_weights(compile_: Compile) -> list[Tensor]:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body, self.head = nn.Embedding(50, 32), mlp(), nn.Linear(32, 50, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.body(self.embed(tokens)))

    return step(compile_, Tied(), torch.randint(0, 50, (4, 6)))


@script
def moving_average_of_weights(compile_: Compile) -> list[Tensor]:
    model = mlp()
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    compiled, optimizer = compile_(model), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        compiled(torch.randn(8, 32)).pow(2).mean().backward()
        optimizer.step()
        average.update_parameters(model)
    return [p.detach() for p in average.parameters()]


@script
def module_and_tensor_hooks(compile_: Compile) -> list[Tensor]:
    model, seen = mlp(), []
    model[1].register_forward_hook(lambda module, inputs, output: output * 2)
    next(model.parameters()).register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    x = torch.randn(8, 32, requires_grad=True)
    x.register_hook(lambda grad: grad * 3)
    return [*step(compile_, model, x), x.grad, *seen]


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.exp() * 0.5  # not the derivative, so that a lost rule shows


@script
def user_autograd_function(compile_: Compile) -> list[Tensor]:
    return step(compile_, Around(_Scaled.apply), torch.randn(8, 32))


@script
def functorch_grad_and_vmap(compile_: Compile) -> list[Tensor]:
    weight = torch.randn(32, 32, requires_grad=True)

    def loss(row: Tensor) -> Tensor:
        return torch.tanh(weight @ row).pow(2).sum()

    def sensitivity(x: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.grad(loss))(x)

    out = compile_(sensitivity)(torch.randn(8, 32))
    out.pow(2).mean().backward()
    return [out.detach(), weight.grad]


@script
def batch_norm_and_running_statistics(compile_: Compile) -> list[Tensor]:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )
    found = step(compile_, model, torch.randn(4, 3, 10, 10))
    return [*found, *model.buffers()]


@script
def a_buffer_that_is_read_and_then_overwritten(compile_: Compile) -> list[Tensor]:
    """The backward needs the value that the forward has read, not the one that it has left."""

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 32)
            self.register_buffer("mean", torch.zeros(32))

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            centred = h - self.mean
            self.mean.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
            return self.last(nn.functional.gelu(centred))

    model = Centred()
    return [*step(compile_, model, torch.randn(16, 32)), *model.buffers()]
