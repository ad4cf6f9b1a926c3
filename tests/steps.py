"""Small networks with a loss inside, and what the compiler makes of their steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from graphremat.lowering import GeneratedCode, generate_step_code, keep_saved_inputs, output_names
from graphremat.passes.torch_private import (
    CustomPartitionerFn,
    aot_autograd,
    boxed,
    compile_fx,
    compile_fx_inner,
    origins_in_comments,
    torch_partition,
)
from graphremat.truth import StepTruth, dry_run_graphs, step_truth


class Perceptron(nn.Module):
    """Three linear layers over 16 features."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.head = nn.Linear(width, 1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(batch)).square().mean()


class GatedLayers(nn.Module):
    """Six linear layers over 64 features with residuals, each behind a gate; the loss is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)) * torch.sigmoid(x) + x
        return x.square().mean()


class Attention(nn.Module):
    """Tokens through one causal attention with dropout, and a cross entropy."""

    def __init__(self, features: int = 64, heads: int = 4, words: int = 100) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(words, features)
        self.norm = nn.LayerNorm(features)
        self.mix = nn.Linear(features, 3 * features)
        self.out = nn.Linear(features, features)
        self.head = nn.Linear(features, words)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        batch, length, features = hidden.shape
        mixed = self.mix(self.norm(hidden)).view(batch, length, 3, self.heads, features // self.heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        attended = attended.transpose(1, 2).reshape(batch, length, features)
        hidden = hidden + functional.dropout(self.out(attended), 0.2)
        return functional.cross_entropy(self.head(hidden).flatten(0, 1), targets.flatten())


class Convolutions(nn.Module):
    """Two convolutions with batch norms, which change their buffers, and a residual connection."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.second_norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 10)

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.first_norm(self.first(images)))
        hidden = functional.relu(self.second_norm(self.second(hidden)) + hidden)
        return functional.cross_entropy(self.head(hidden.mean((2, 3))), targets)


def build(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A network and its batch, the same every time."""
    torch.manual_seed(0)
    if name == "perceptron":
        return Perceptron(), (torch.randn(256, 16),)
    if name == "attention":
        return Attention(), (torch.randint(0, 100, (4, 64)), torch.randint(0, 100, (4, 64)))
    return Convolutions(), (torch.randn(16, 3, 48, 48), torch.randint(0, 10, (16,)))


@dataclass
class Observed:
    """What a compilation showed.

    Attributes:
        graphs: the partitioner's two graphs, before the compiler changes them.
        codes: the generated wrappers, several times if asked for.
        truths: the dry run of each of them.
        graphs_truth: the dry run of the graphs.
        sources: the wrappers that were really compiled, forward and backward.
    """

    repeats: int = 1
    mutated_inputs: int = 0
    names: tuple[str | None, ...] = ()
    codes: list[tuple[GeneratedCode, GeneratedCode]] = field(default_factory=list)
    truths: list[StepTruth] = field(default_factory=list)
    graphs_truth: StepTruth | None = None
    sources: list[str] = field(default_factory=list)
    look: Callable[[fx.GraphModule, fx.GraphModule], None] | None = None

    def partition(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Any:
        forward, backward = torch_partition(gm, joint_inputs, **kwargs)
        self.names = output_names(forward)
        for _ in range(self.repeats):
            forward_code, backward_code = generate_step_code(forward, backward, user_visible_outputs=1)
            self.codes.append((forward_code, backward_code))
            self.truths.append(
                step_truth(forward_code, backward_code, forward_outputs=self.names, num_user_outputs=1)
            )
        self.graphs_truth = dry_run_graphs(forward, backward, num_user_outputs=1)
        if self.look is not None:
            self.look(forward, backward)
        return forward, backward


class _Partitioner(CustomPartitionerFn):
    def __init__(self, observed: Observed) -> None:
        self.observed = observed

    def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Any:
        return self.observed.partition(gm, joint_inputs, **kwargs)

    def __deepcopy__(self, _: object) -> "_Partitioner":
        """Torch copies its configuration; what was observed has fake tensors, which cannot be copied."""
        return self

    def uuid(self) -> object:
        return id(self)


def with_inductor(model: nn.Module, observed: Observed) -> Callable[..., Any]:
    """The model compiled by Inductor, as the backend has it do so, without any cache of graphs."""

    def inner_compile(gm: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        if not kwargs.get("is_backward"):
            keep_saved_inputs(gm)
        with origins_in_comments():
            compiled = compile_fx_inner(gm, inputs, **kwargs)
        observed.sources.append(compiled.source_code)
        return compiled

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        patches = {"custom_partitioner_fn": _Partitioner(observed), "force_disable_caches": True}
        return compile_fx(gm, inputs, inner_compile=inner_compile, config_patches=patches)

    torch.compiler.reset()
    return torch.compile(model, backend=backend)


def op_by_op(model: nn.Module, observed: Observed, *, inductor_passes: bool = False) -> Callable[..., Any]:
    """The model with its two graphs run as they are; nothing is compiled."""

    def as_it_is(gm: fx.GraphModule, _: Sequence[Any], **__: Any) -> Any:
        return boxed(lambda arguments: fx.Interpreter(gm).boxed_run(arguments))

    torch.compiler.reset()
    if inductor_passes:

        def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
            patches = {"custom_partitioner_fn": _Partitioner(observed), "force_disable_caches": True}
            return compile_fx(gm, inputs, inner_compile=as_it_is, config_patches=patches)

        return torch.compile(model, backend=backend)
    return torch.compile(
        model,
        backend=aot_autograd(fw_compiler=as_it_is, bw_compiler=as_it_is, partition_fn=observed.partition),
    )
