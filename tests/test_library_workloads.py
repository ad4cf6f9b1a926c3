"""The networks of libraries: trainable, with the blocks that are named, and each one whole graph."""

import importlib.util
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.contest.libraries import LIBRARIES
from bench.contest.workload import Workload
from graphremat.tracing import trace_step

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

NEEDS = {"lora_llama": "peft", "resnet50": "timm", "vit": "timm", "diffusion_unet": "diffusers"}
"""The others need transformers."""
PLANNED: dict[str, Any] = {"lowering": "aot_eager", "memory_budget": 0.0}


def tiny(name: str) -> Workload:
    library = NEEDS.get(name, "transformers")
    if importlib.util.find_spec(library) is None:  # importorskip would import it before it can be
        pytest.skip(f"{library} is not installed")
    return LIBRARIES[name]("tiny")


def step(workload: Workload, model: Callable[..., Any] | None = None, seed: int = 1) -> dict[str, Tensor]:
    """The loss, and the gradients by the names of the workload's parameters."""
    workload.model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    loss = workload.loss((workload.model if model is None else model)(*workload.inputs))
    assert loss.shape == ()
    loss.backward()
    named = workload.model.named_parameters()
    return {"the loss": loss.detach()} | {
        name: value.grad.clone() for name, value in named if value.grad is not None
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Within 1e-5 of each gradient's norm, besides what rounding leaves of gradients that are zero."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 1e-5 * value.norm() + 1e-8, name


def children(workload: Workload, chain: str, model: nn.Module | None = None) -> list[nn.Module]:
    return list((workload.model if model is None else model).get_submodule(chain).children())


class Together(nn.Module):
    """Modules that run one behind the other."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        for part in self.parts:
            x = part(x, *args, **kwargs)
        return x


@pytest.mark.parametrize("name", LIBRARIES)
def test_gradients_are_finite_everywhere_and_repeat(name: str) -> None:
    workload = tiny(name)
    assert (workload.name, workload.size) == (name, "tiny")
    first = step(workload)
    trained = {name for name, value in workload.model.named_parameters() if value.requires_grad}
    assert first.keys() == {"the loss", *trained}
    for parameter, gradient in first.items():
        assert gradient.isfinite().all(), parameter
        assert gradient.abs().sum() > 0.0, parameter
    state = torch.get_rng_state()
    again = LIBRARIES[name]("tiny")
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(step(again), first)


@pytest.mark.parametrize("name", LIBRARIES)
def test_only_what_says_so_is_random(name: str) -> None:
    workload = tiny(name)
    one, other = step(workload, seed=1), step(workload, seed=2)
    differ = any(not torch.allclose(one[parameter], other[parameter], rtol=1e-4) for parameter in one)
    assert differ == workload.random


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_twin_shares_what_is_trained_and_nothing_else(name: str) -> None:
    workload = tiny(name)
    twin = workload.twin()
    for one, other in zip(workload.model.parameters(), twin.parameters(), strict=True):
        assert one is other
    for buffer, same in zip(workload.model.buffers(), twin.buffers(), strict=True):
        assert buffer is same
    assert not {id(module) for module in workload.model.modules()} & {id(module) for module in twin.modules()}
    assert_same(step(workload, twin), step(workload))


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_named_block_runs_once(name: str) -> None:
    workload = tiny(name)
    named = [workload.model.get_submodule(block) for block in workload.blocks]
    named += [module for chain in workload.chains for module in children(workload, chain)]
    assert named
    ran: list[nn.Module] = []
    for module in named:
        module.register_forward_hook(lambda module, args, output: ran.append(module))
    step(workload)
    assert len(ran) == len(named)
    assert set(ran) == set(named)


@pytest.mark.parametrize("name", LIBRARIES)
def test_modules_of_a_chain_take_what_the_one_before_returned_and_equal_arguments(name: str) -> None:
    workload = tiny(name)
    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]] = []
    for chain in workload.chains:
        for module in children(workload, chain):
            module.register_forward_hook(lambda *call: calls.append(call), with_kwargs=True)
    step(workload)
    for chain in workload.chains:
        members = children(workload, chain)
        ours = [call for call in calls if call[0] in members]
        assert [call[0] for call in ours] == members
        for (_, args, kwargs, output), (_, next_args, next_kwargs, _) in pairwise(ours):
            assert isinstance(output, Tensor)
            assert next_args[0] is output
            assert all(map(lambda one, other: one is other, next_args[1:], args[1:]))
            assert next_kwargs.keys() == kwargs.keys()
            assert all(next_kwargs[key] is kwargs[key] for key in kwargs)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_chain_can_be_replaced_by_one_module(name: str) -> None:
    workload = tiny(name)
    twin = workload.twin()
    for chain in workload.chains:
        kind = type(twin.get_submodule(chain))
        together = Together(children(workload, chain, twin))
        twin.set_submodule(
            chain, nn.ModuleList([together]) if kind is nn.ModuleList else nn.Sequential(together)
        )
    assert_same(step(workload, twin), step(workload))


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_library_s_own_checkpoints_keep_less_and_give_the_same(name: str) -> None:
    workload = tiny(name)
    twin = workload.twin()
    assert workload.checkpoint is not None
    workload.checkpoint(twin)
    assert_same(step(workload, twin), step(workload))
    saved_bytes = dict.fromkeys((workload.model, twin), 0)
    for model in saved_bytes:

        def count(value: Tensor, model: nn.Module = model) -> Tensor:
            saved_bytes[model] += value.nbytes
            return value

        with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
            model(*workload.inputs)
    assert saved_bytes[twin] < 0.8 * saved_bytes[workload.model]


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.usefixtures("fresh_compiler")
def test_the_graph_is_whole(name: str) -> None:
    workload = tiny(name)
    compiled = torch.compile(workload.model, backend="aot_eager", fullgraph=True)
    assert_same(step(workload, compiled), step(workload))


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.usefixtures("fresh_ledger")
def test_the_least_memory_gives_the_same(name: str) -> None:
    workload = tiny(name)
    compiled = torch.compile(workload.model, backend="graphremat", options=PLANNED, fullgraph=True)
    assert_same(step(workload, compiled), step(workload))


def test_the_products_of_experts_may_run_again_and_have_a_price() -> None:
    workload = tiny("mixtral")
    problem = trace_step(workload.model, workload.inputs, with_torchs=False).problem
    name = "transformers.grouped_mm_fallback"
    forwards = [op for op in problem.ops if op.target.startswith(f"{name}.")]
    backwards = [op for op in problem.ops if op.target.startswith(f"{name}_backward.")]
    assert len(forwards) == len(backwards) > 0
    assert not any(op.keep for op in forwards)
    assert sum(op.flops for op in backwards) == 2 * sum(op.flops for op in forwards) > 0


def test_an_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"gpt2 has no size 'huge'; it has tiny, large"):
        LIBRARIES["gpt2"]("huge")


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = NEEDS.get(name, "transformers")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"needs {library}, .*'graphremat\[contest\]'"):
        LIBRARIES[name]("tiny")
