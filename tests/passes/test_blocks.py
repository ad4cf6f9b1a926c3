"""Checkpoints around blocks: against what torch makes of ``torch.utils.checkpoint``, and against counting."""

from collections.abc import Iterable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import graphremat
from bench.networks import NETWORKS
from graphremat.passes import planner
from graphremat.passes.blocks import Blocks, block_path, checkpoint_blocks, find_blocks
from graphremat.passes.frontier import judge
from graphremat.passes.planner import plan_frontier
from graphremat.passes.problem import Phase, Problem

BLOCKS, WIDTH, ROWS = 4, 32, 64


class Block(nn.Module):
    """Two layers, a residual, and a sine, whose backward needs all that is before it."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x + self.down(torch.tanh(self.up(x))))


class Network(nn.Module):
    """Blocks between two layers of no block; each group of ``wrap`` blocks is in a checkpoint, none if that is 0."""

    def __init__(self, wrap: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.last = nn.Linear(WIDTH, 1)
        self.wrap = wrap

    def part(self, x: torch.Tensor, start: int) -> torch.Tensor:
        for block in self.blocks[start : start + (self.wrap or BLOCKS)]:
            x = block(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x))
        if not self.wrap:
            x = self.part(x, 0)
        else:
            for start in range(0, BLOCKS, self.wrap):
                x = checkpoint(self.part, x, start, use_reentrant=False)
        return self.last(x).square().mean()


def forecast(wrap: int = 0) -> graphremat.Forecast:
    torch.compiler.reset()
    return graphremat.plan(lambda: (Network(wrap), (torch.randn(ROWS, WIDTH),)))


def test_the_paths_of_blocks() -> None:
    assert block_path("model.layers.12.mlp.up") == ("model.layers", 12)
    assert block_path("down.0.resnets.1.conv") == ("down", 0)
    assert block_path("layer2norm") is None
    assert block_path("") is None


def test_neighbours_of_one_list_share_a_segment() -> None:
    names = (("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1))
    assert Blocks(names, ()).groups(1) == (0, 1, 2, 3, 4)
    assert Blocks(names, ()).groups(2) == (0, 0, 1, 2, 2)
    assert Blocks(names, ()).groups(9) == (0, 0, 0, 1, 1)


def test_the_blocks_are_found() -> None:
    found = find_blocks(forecast().problem)
    assert found.names == tuple(("blocks", k) for k in range(BLOCKS))
    backward = [op.phase is Phase.BACKWARD for op in forecast().problem.ops]
    assert all(block == -1 for block, behind in zip(found.block_of, backward, strict=True) if behind)


@pytest.mark.parametrize("every", [1, 2, BLOCKS])
def test_every_product_within_blocks_runs_again_and_nothing_else_of_weight(every: int) -> None:
    found = forecast()
    problem, blocks = found.problem, find_blocks(found.problem)
    assert found.torchs_plan is not None
    plan = checkpoint_blocks(problem, blocks, every, found.torchs_plan.saved)
    again = [problem.ops[i] for i in plan.recomputed(problem) if problem.ops[i].flops > ROWS * WIDTH * WIDTH]
    assert len(again) == 2 * BLOCKS
    inside = [v for v in plan.saved if blocks.block_of[problem.values[v].producer] >= 0]
    assert len(inside) == BLOCKS // every


@pytest.mark.parametrize("every", [1, 2])
def test_it_is_what_torch_does_with_wrapped_blocks(every: int) -> None:
    found, wrapped = forecast(), forecast(every)
    assert found.torchs_plan is not None
    assert wrapped.torchs is not None
    plan = checkpoint_blocks(found.problem, find_blocks(found.problem), every, found.torchs_plan.saved)
    run = judge(found.problem, plan).replay
    # The last block's result: a checkpoint keeps it for the layer that follows, torch compiles that to be made again.
    assert run.saved_bytes == wrapped.torchs.saved_bytes + 4 * ROWS * WIDTH
    assert run.recompute_seconds == pytest.approx(wrapped.torchs.recompute_seconds, rel=0.1)
    assert run.peak_bytes == pytest.approx(wrapped.torchs.peak_bytes, rel=0.05)


def products_of(problem: Problem, indices: Iterable[int]) -> list[int]:
    return [i for i in indices if problem.ops[i].flops > ROWS * WIDTH * WIDTH]


def test_what_is_kept_is_not_made_again_and_blocks_that_are_not_wrapped_stay() -> None:
    found = forecast()
    problem, blocks = found.problem, find_blocks(found.problem)
    assert found.torchs_plan is not None
    outside = found.torchs_plan.saved
    products = [w for i in products_of(problem, range(len(problem.ops))) for w in problem.ops[i].writes]
    forward = [v for v in products if problem.ops[problem.values[v].producer].phase is not Phase.BACKWARD]
    kept = checkpoint_blocks(problem, blocks, 1, outside, kept=forward)
    without = checkpoint_blocks(problem, blocks, 1, outside)
    assert set(kept.saved) - set(without.saved) <= set(forward)
    assert len(products_of(problem, without.recomputed(problem))) == 2 * BLOCKS
    assert not products_of(problem, kept.recomputed(problem))
    first_two = checkpoint_blocks(problem, blocks, 1, outside, wrapped=2)
    again = products_of(problem, first_two.recomputed(problem))
    assert {blocks.block_of[i] for i in again} == {0, 1}


def test_no_checkpoint_around_blocks_beats_the_frontier() -> None:
    case = NETWORKS["llama"].build("small")
    found = graphremat.plan(case.model, case.inputs, device="A100-40GB")
    problem, blocks = found.problem, find_blocks(found.problem)
    assert found.torchs_plan is not None
    frontier = plan_frontier(problem, effort=0.0, remake_saved=False)  # without the local search
    made = [op for op in problem.ops if op.phase is not Phase.BACKWARD and op.flops]
    attention = [w for op in made if "attention" in op.target for w in op.writes]
    assert attention
    for every in (1, 2):
        for kept in ((), attention):
            plan = checkpoint_blocks(problem, blocks, every, found.torchs_plan.saved, kept=kept)
            run = judge(problem, plan).replay
            place = frontier.under(run.peak_bytes)
            assert place is not None
            assert (
                frontier.candidates[place].replay.seconds <= run.seconds * 1.005
            )  # what lies outside differs


def test_checkpoints_compete_on_the_frontier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the programme over stages finds nothing, as it may in a large graph."""
    problem = forecast().problem
    monkeypatch.setattr(planner, "_chain_plans", lambda *_, **__: [])
    found = plan_frontier(problem, effort=0.0)
    lowest = found.candidates[-1]
    assert lowest.plan.origin.startswith("checkpoint every")
    monkeypatch.setattr(planner, "_block_plans", lambda *_: [])
    place = (without := plan_frontier(problem, effort=0.0)).under(lowest.replay.peak_bytes)
    assert place is None or without.candidates[place].replay.seconds > lowest.replay.seconds
