"""What makes graphs unusual: varying shapes, graph breaks, operators with code inside, odd values."""

from typing import Any

import torch
from torch import Tensor, nn

from bench.training_scripts.parts import Around, Compile, gradients, mlp, script, step


@script
def dynamic_shapes(compile_: Compile) -> list[Tensor]:
    model = mlp()
    compiled, found = compile_(model, dynamic=True), []
    for rows in (8, 12, 20):
        model.zero_grad()
        compiled(torch.randn(rows, 32)).pow(2).mean().backward()
        found += [g.clone() for g in gradients(model)]
    return found


@script
def a_dimension_marked_dynamic(compile_: Compile) -> list[Tensor]:
    model = mlp()
    compiled, found = compile_(model), []
    for rows in (8, 12):
        x = torch.randn(rows, 32)
        torch._dynamo.mark_dynamic(x, 0)  # noqa: TID251
        model.zero_grad()
        compiled(x).pow(2).mean().backward()
        found += [g.clone() for g in gradients(model)]
    return found


@script
def shapes_that_recompile(compile_: Compile) -> list[Tensor]:
    model = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    compiled, found = compile_(model), []
    for length in (4, 7, 9):
        model.zero_grad()
        compiled(torch.randn(2, length, 32)).pow(2).mean().backward()
        found += [g.clone() for g in gradients(model)]
    return found


@script
def sizes_that_depend_on_data(compile_: Compile) -> list[Tensor]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            return self.last(h[(x[:, 0] > 0).nonzero().squeeze(-1)]).sum()

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):  # noqa: TID251
        return step(compile_, Model(), torch.randn(16, 32))


@script
def a_graph_break(compile_: Compile) -> list[Tensor]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = mlp(layers=2), mlp(layers=2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            torch._dynamo.graph_break()  # noqa: TID251
            return self.last(x)

    return step(compile_, Model(), torch.randn(8, 32))


@script
def two_compiled_modules(compile_: Compile) -> list[Tensor]:
    first, last = mlp(layers=2), mlp(layers=2)
    compile_(last)(compile_(first)(torch.randn(8, 32))).pow(2).mean().backward()
    return [*gradients(first), *gradients(last)]


@script
def flex_attention(compile_: Compile) -> list[Tensor]:
    from torch.nn.attention.flex_attention import flex_attention as flex

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(32, 96)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            return flex(q, k, v, score_mod=lambda score, b, h, i, j: score + (i - j))

    return step(compile_, Model(), torch.randn(2, 16, 32))


@script
def a_branch_on_data(compile_: Compile) -> list[Tensor]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            h = torch.cond(x.sum() > 0, lambda t: t.sin(), lambda t: t.cos() * 2, (h,))
            return self.last(h)

    return step(compile_, Model(), torch.randn(8, 32))


@script
def nested_regions(compile_: Compile) -> list[Tensor]:
    @torch.compiler.nested_compile_region
    def block(x: Tensor, weight: Tensor) -> Tensor:
        return torch.tanh(x @ weight) + x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(torch.randn(32, 32) / 6 for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for weight in self.weights:
                x = block(x, weight)
            return x

    return step(compile_, Model(), torch.randn(8, 32))


@script
def a_scan(compile_: Compile) -> list[Tensor]:
    from torch._higher_order_ops.scan import scan  # noqa: TID251

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            def one(state: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
                state = torch.tanh(state + row)
                return state, state * 2

            return scan(one, torch.zeros(32), self.first(x))[1]

    return step(compile_, Model(), torch.randn(8, 32))


@torch.library.custom_op("graphremat_scripts::cubed", mutates_args=())
def cubed(x: Tensor) -> Tensor:
    return x * x * x


cubed.register_fake(torch.empty_like)
cubed.register_autograd(
    lambda ctx, grad: grad * 3 * ctx.saved_tensors[0] ** 2,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


@script
def a_custom_operator(compile_: Compile) -> list[Tensor]:
    return step(compile_, Around(cubed), torch.randn(8, 32))


@script
def a_print_inside(compile_: Compile) -> list[Tensor]:
    def shown(h: Tensor) -> Tensor:
        print("mean", float(h.mean()) > 1e9)
        return h

    return step(compile_, Around(shown), torch.randn(8, 32))


@script
def complex_values(compile_: Compile) -> list[Tensor]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            spectrum = torch.fft.rfft(torch.tanh(self.first(x)))
            return torch.fft.irfft(spectrum * torch.polar(spectrum.abs(), spectrum.angle()))

    return step(compile_, Model(), torch.randn(8, 32))


@script
def empty_and_zero_dim_tensors(compile_: Compile) -> list[Tensor]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.scale = nn.Linear(32, 32), nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor, nothing: Tensor) -> Tensor:
            h = torch.cat([torch.tanh(self.first(x)), self.first(nothing)])
            return h * self.scale.exp() / h.numel()

    return step(compile_, Model(), torch.randn(8, 32), torch.empty(0, 32))


@script
def integers_and_masks(compile_: Compile) -> list[Tensor]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(50, 32, padding_idx=0), mlp(layers=2)

        def forward(self, tokens: Tensor) -> Tensor:
            h = self.body(self.embed(tokens)).masked_fill((tokens == 0)[..., None], 0.0)
            best = h.argmax(-1, keepdim=True)
            return h.gather(-1, best) * tokens.float().cumsum(-1)[..., None]

    return step(compile_, Model(), torch.randint(0, 50, (4, 6)))


@script
def outputs_in_a_dict(compile_: Compile) -> list[Tensor]:
    model = mlp()

    def call(x: Tensor) -> dict[str, Any]:
        h = model(x)
        return {"loss": h.pow(2).mean(), "hidden": [h, h.detach() * 2], "rows": x.shape[0]}

    out = compile_(call)(torch.randn(8, 32))
    (out["loss"] + out["hidden"][0].sum()).backward()
    return [out["hidden"][1], *gradients(model)]
