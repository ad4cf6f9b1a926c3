"""Who trains: what a user can do about memory, each as a function of a workload that can be called like its model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from bench.contest.placements import PLACEMENTS, NoPlacement, Placement
from bench.contest.rows import OURS, REFERENCE
from bench.contest.workload import Workload
from graphremat.backend import graphremat as graphremat_backend
from graphremat.passes.flops import node_flops
from graphremat.passes.torch_private import (
    CustomPartitionerFn,
    activation_memory_budget,
    compile_fx,
    storage_key,
    torch_partition,
)

SOLVERS = ("dp", "ilp")
TORCH_BUDGETS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
Call = Callable[..., Any]
Backend = Callable[[fx.GraphModule, Sequence[Any]], Call]


@dataclass(frozen=True)
class Contestant:
    """``prepare(workload)`` gives what is called like the model; it is compiled, if at all, by its first call.

    Attributes:
        flops: gets what the compiled graphs do, as they are compiled; empty of what is not compiled by torch's own.
    """

    name: str
    family: str
    prepare: Callable[[Workload], Call]
    flops: "Flops | None" = None


class Flops(CustomPartitionerFn):  # type: ignore[misc]
    """torch's own partitioner, which adds up what its two graphs do, and what the joint graph would do once."""

    def __init__(self) -> None:
        self.joint = 0
        self.compiled = 0

    def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Any:
        self.joint += flops_of(gm.graph)
        graphs = torch_partition(gm, joint_inputs, **kwargs)
        self.compiled += sum(flops_of(graph.graph) for graph in graphs)
        return graphs

    def uuid(self) -> None:
        """Nothing that it does may come out of a cache."""
        return


def flops_of(graph: fx.Graph) -> int:
    """FLOPs of matrix products, convolutions and attention."""
    return sum(node_flops(node) or 0 for node in graph.nodes if node.op == "call_function")


def torchs(fraction: float = 1.0, solver: str = "dp", flops: Flops | None = None) -> Backend:
    """Inductor with torch's own budget. A function of its own, so that Dynamo keeps the contestants apart."""

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Call:
        patches = {} if flops is None else {"custom_partitioner_fn": flops}
        with activation_memory_budget(fraction, solver):
            return compile_fx(gm, inputs, config_patches=patches)  # type: ignore[no-any-return, return-value]

    return backend


def ours(budget: float | int | None, **options: Any) -> Backend:
    """The project's backend; bytes are over what the compiled call is given, as measured peaks are."""

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Call:
        more = given_bytes(inputs) if isinstance(budget, int) else 0
        memory_budget = budget if budget is None else budget + more
        return graphremat_backend(gm, inputs, options={"memory_budget": memory_budget, **options})

    return backend


def given_bytes(inputs: Sequence[Any]) -> int:
    """Bytes of the distinct storages of a graph's inputs, which may be fake."""
    tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
    return sum({storage_key(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def compiled_by_torch(name: str, family: str, place: Placement, **how: Any) -> Contestant:
    """Compiled by Inductor, after a placement."""
    flops = Flops()

    def prepare(workload: Workload) -> Call:
        model = place(workload)
        return torch.compile(model, backend=torchs(flops=flops, **how), dynamic=False)  # type: ignore[no-any-return]

    return Contestant(name, family, prepare, flops)


def compiled_by_us(budget: float | int | None) -> Contestant:
    """Compiled under a budget: none, a fraction, or bytes over parameters and inputs."""
    told = (
        f"{budget / 2**20:.2f} MiB"
        if isinstance(budget, int)
        else "none"
        if budget is None
        else f"{budget:g}"
    )

    def prepare(workload: Workload) -> Call:
        return torch.compile(workload.model, backend=ours(budget), dynamic=False)  # type: ignore[no-any-return]

    return Contestant(f"{OURS} {told}", OURS, prepare)


def as_it_is(workload: Workload) -> nn.Module:
    """No placement."""
    return workload.model


def of_the_library(workload: Workload) -> nn.Module:
    """What the library of the network offers, as ``gradient_checkpointing_enable`` does."""
    if workload.checkpoint is None:
        raise NoPlacement(f"{workload.name} is not from a library that offers checkpoints")
    twin = workload.twin()
    workload.checkpoint(twin)
    return twin


REFERENCE_CONTESTANT = partial(compiled_by_torch, REFERENCE, REFERENCE, as_it_is)


def others(placements: Mapping[str, Placement] | None = None, *, budgets: Sequence[float] = TORCH_BUDGETS,
           solvers: Sequence[str] = SOLVERS) -> list[Contestant]:  # fmt: skip
    """Everybody but us, plain Inductor first.

    Args:
        placements: of checkpoints, by name; None for all.
        budgets: values of ``activation_memory_budget``.
        solvers: of its knapsack.
    """
    chosen = {**PLACEMENTS, "the library's checkpoints": of_the_library} if placements is None else placements
    by_hand = f"{REFERENCE}, checkpoints"
    return [
        REFERENCE_CONTESTANT(),
        Contestant("eager", "eager", as_it_is),
        *(Contestant(f"eager, {name}", "eager, checkpoints", place) for name, place in chosen.items()),
        *(compiled_by_torch(f"{REFERENCE}, {name}", by_hand, place) for name, place in chosen.items()),
        *(
            compiled_by_torch(
                f"activation_memory_budget={budget}, {solver}",
                "activation_memory_budget",
                as_it_is,
                fraction=budget,
                solver=solver,
            )
            for solver in solvers
            for budget in budgets
        ),
    ]
