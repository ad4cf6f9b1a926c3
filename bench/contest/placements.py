"""Where people put checkpoints by hand: each function gives a twin of a model with ``torch.utils.checkpoint`` in it.

A twin shares the parameters and buffers of the model, so gradients go to the same place.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

from bench.contest.workload import Workload

aten = torch.ops.aten
MATMULS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)
CONVOLUTIONS = (aten.convolution.default,)
ATTENTIONS = (
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
)


class NoPlacement(ValueError):
    """The workload has nowhere to put such a checkpoint."""


class Checkpointed(nn.Module):
    """Blocks one behind the other, whose values are computed again in the backward; all get what follows ``x``."""

    def __init__(self, blocks: Sequence[nn.Module], **how: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.how = how
        for name, value in vars(blocks[0]).items():  # Hugging Face asks its blocks for ``attention_type``
            if isinstance(value, str):
                setattr(self, name, value)

    def forward(self, x: Any, *rest: Any, **named: Any) -> Any:
        def run(x: Any, *rest: Any, **named: Any) -> Any:
            for block in self.blocks:
                x = block(x, *rest, **named)
            return x

        return checkpoint(run, x, *rest, use_reentrant=False, **self.how, **named)


class Sequential(nn.Module):
    """All blocks of a chain in ``checkpoint_sequential``: the values of the last segment are saved."""

    def __init__(self, blocks: Sequence[nn.Module], segments: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.segments = segments

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        functions = [lambda x, block=block: block(x, *rest) for block in self.blocks]
        return checkpoint_sequential(functions, self.segments, x, use_reentrant=False)  # type: ignore[no-any-return]


def block_names(workload: Workload) -> list[str]:
    """Every block that can be put into a checkpoint of its own, in the order of the model."""
    inner = [
        f"{chain}.{name}"
        for chain in workload.chains
        for name, _ in workload.model.get_submodule(chain).named_children()
    ]
    return [*inner, *workload.blocks]


def wrapped(workload: Workload, names: Sequence[str], **how: Any) -> nn.Module:
    """A twin in which the named blocks are in checkpoints of their own."""
    if not names:
        raise NoPlacement(f"{workload.name} has no blocks")
    twin = workload.twin()
    for name in names:
        _replace(twin, name, Checkpointed([twin.get_submodule(name)], **how))
    return twin


def every(workload: Workload, count: int) -> nn.Module:
    """Checkpoints around every ``count`` blocks of a chain; where they are no chain, around every ``count``-th."""
    twin = wrapped(workload, workload.blocks[::count]) if workload.blocks else workload.twin()
    if not workload.chains and not workload.blocks:
        raise NoPlacement(f"{workload.name} has no blocks")
    for chain in workload.chains:
        blocks = list(twin.get_submodule(chain).children())
        segments = [Checkpointed(blocks[start : start + count]) for start in range(0, len(blocks), count)]
        _replace(twin, chain, _like(twin.get_submodule(chain), segments))
    return twin


def sequential(workload: Workload) -> nn.Module:
    """``checkpoint_sequential`` over each chain, in about the square root of its length of segments."""
    if not workload.chains:
        raise NoPlacement(f"{workload.name} has no blocks that run one behind the other")
    twin = workload.twin()
    for chain in workload.chains:
        blocks = list(twin.get_submodule(chain).children())
        segments = max(1, round(len(blocks) ** 0.5))
        _replace(twin, chain, _like(twin.get_submodule(chain), [Sequential(blocks, segments)]))
    return twin


def selective(workload: Workload, *, every_second_matmul: bool) -> nn.Module:
    """Every block in a selective checkpoint that saves what is dear: attention, and all matrix products and
    convolutions or every second one."""
    saving = (*MATMULS, *CONVOLUTIONS, *ATTENTIONS)

    def contexts() -> Any:
        if not every_second_matmul:
            return create_selective_checkpoint_contexts(list(saving))
        seen = {False: 0, True: 0}

        def policy(context: Any, op: Any, *_: Any, **__: Any) -> CheckpointPolicy:
            if op in MATMULS or op in CONVOLUTIONS:
                seen[context.is_recompute] += 1
                if seen[context.is_recompute] % 2 == 0:
                    return CheckpointPolicy.PREFER_RECOMPUTE
            return CheckpointPolicy.MUST_SAVE if op in saving else CheckpointPolicy.PREFER_RECOMPUTE

        return create_selective_checkpoint_contexts(policy)

    return wrapped(workload, block_names(workload), context_fn=contexts)


def by_bytes_per_second(workload: Workload, share: float) -> nn.Module:
    """The placement rule of many tutorials: measure bytes and milliseconds of every block in an eager forward, and put
    the blocks into checkpoints, most bytes for a millisecond first, until what the others save is at most a ``share``
    of what all save."""
    costs = block_costs(workload)
    total_bytes = sum(saved for saved, _ in costs.values())
    left_bytes, chosen = total_bytes, []
    for name in sorted(costs, key=lambda name: -costs[name][0] / costs[name][1]):
        if left_bytes <= share * total_bytes:
            break
        chosen.append(name)
        left_bytes -= costs[name][0]
    return wrapped(workload, chosen)


def block_costs(workload: Workload, rounds: int = 3) -> dict[str, tuple[int, float]]:
    """Bytes that each block saves in an eager forward, without parameters and its input, and its best seconds."""
    found: dict[str, tuple[int, float]] = {}
    held = {t.untyped_storage().data_ptr() for t in (*workload.model.parameters(), *workload.model.buffers())}
    for name in block_names(workload):
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        block = workload.model.get_submodule(name)
        hook = block.register_forward_pre_hook(
            lambda _, args, kwargs, calls=calls: calls.append((args, kwargs)), with_kwargs=True
        )
        with torch.no_grad():
            workload.model(*workload.inputs)
        hook.remove()
        args, kwargs = calls[0]
        inputs = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        saved: dict[int, int] = {}

        def pack(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        times = []
        for _ in range(rounds):
            saved.clear()
            start = time.perf_counter()
            with saved_tensors_hooks(pack, lambda tensor: tensor):
                block(*args, **kwargs)
            times.append(time.perf_counter() - start)
        own = sum(nbytes for pointer, nbytes in saved.items() if pointer not in held | inputs)
        found[name] = (own * len(calls), min(times) * len(calls))
    return found


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    model.get_submodule(parent)._modules[own] = module


def _like(container: nn.Module, modules: Sequence[nn.Module]) -> nn.Module:
    """The modules in a container of the same kind: a list is iterated by its owner, a sequence is called."""
    return nn.Sequential(*modules) if isinstance(container, nn.Sequential) else nn.ModuleList(modules)


Placement = Callable[[Workload], nn.Module]
PLACEMENTS: dict[str, Placement] = {
    "checkpoint every 1": partial(every, count=1),
    "checkpoint every 2": partial(every, count=2),
    "checkpoint every 4": partial(every, count=4),
    "checkpoint_sequential": sequential,
    "selective, all matmuls": partial(selective, every_second_matmul=False),
    "selective, every second matmul": partial(selective, every_second_matmul=True),
    "bytes per second, 0.75": partial(by_bytes_per_second, share=0.75),
    "bytes per second, 0.5": partial(by_bytes_per_second, share=0.5),
    "bytes per second, 0.25": partial(by_bytes_per_second, share=0.25),
}
"""What is done by hand, by name."""
