"""``python -m bench.plan_speed``: seconds from a joint graph to a finished plan, beside torch's own partitioner.

The networks are decoders of the shape of Llama 3 8B with 8, 32 and 128 blocks: bfloat16, 4 sequences of 2,048 tokens,
traced on fake tensors with Inductor's decompositions. Nothing is ever computed. torch's
``min_cut_rematerialization_partition`` works at an ``activation_memory_budget`` of 0.5 on a copy of the same graph.
torch's time includes the making of the two graphs; for us that is the column ``split``, which is not part of ``total``.
Each time is the best of some rounds, torch's and ours in turn.

    python -m bench.plan_speed                             # 8, 32 and 128 blocks; torch up to 32
    python -m bench.plan_speed --blocks 8 --no-plan        # what comes before the planner alone
    python -m bench.plan_speed --problems DIR --no-plan    # write problem-8.json and so on as well
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, fx, nn

from bench.networks.llama import llama
from graphremat.passes.build import build_problem
from graphremat.passes.classify import read_joint_graph
from graphremat.passes.devices import find_device
from graphremat.passes.frontier import Candidate
from graphremat.passes.hints import default_size_hint
from graphremat.passes.planner import plan_frontier
from graphremat.passes.problem import Problem
from graphremat.passes.split import split_joint_graph
from graphremat.passes.torch_private import (
    FakeTensorMode,
    activation_memory_budget,
    copy_graph_module,
    inductor_decompositions,
    torch_partition,
    trace_joint_graph,
)

DEVICE = "A100-80GB"
"""Whose prices hold."""
TORCHS_FRACTION = 0.5
STAGES = ("classify", "build", "plan", "split", "torch")

Result = TypeVar("Result")


@dataclass
class Row:
    """What was measured on one graph. ``seconds`` by the names in :data:`STAGES`; what was left out is not in it."""

    blocks: int
    nodes: int
    ops: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Seconds from the joint graph to the finished plan; meaningless without a plan."""
        return sum(self.seconds.get(stage, 0.0) for stage in ("classify", "build", "plan"))

    def time(self, stage: str, work: Callable[[], Result]) -> Result:
        """Do ``work`` and note how long it took, if no earlier round was faster."""
        start = time.perf_counter()
        result = work()
        self.seconds[stage] = min(time.perf_counter() - start, self.seconds.get(stage, math.inf))
        return result


def joint_graph(blocks: int) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """The joint graph of a decoder with so many blocks, loss inside, and its fake inputs."""
    with FakeTensorMode():
        model, tokens = llama(
            layers=blocks,
            width=4096,
            heads=32,
            hidden=14336,
            vocabulary=128256,
            batch=4,
            length=2048,
            key_value_heads=8,
        )
        state = {
            name: torch.empty_like(value, dtype=torch.bfloat16, requires_grad=isinstance(value, nn.Parameter))
            for name, value in (*model.named_parameters(), *model.named_buffers())
        }

        def loss(*flat: Tensor) -> tuple[Tensor]:
            named = dict(zip(state, flat[: len(state)], strict=True))
            return (torch.func.functional_call(model, named, flat[len(state) :]),)

        inputs = (*state.values(), *tokens)
        return trace_joint_graph(loss, inputs, inductor_decompositions()), inputs


def plan(problem: Problem) -> Candidate:
    """Our plan for the budget half way between the lowest and the highest peak."""
    frontier = plan_frontier(problem)
    peaks = [candidate.replay.peak_bytes for candidate in frontier.candidates]
    place = frontier.under((min(peaks) + max(peaks)) // 2)
    assert place is not None
    return frontier.candidates[place]


def measure(
    blocks: int, *, rounds: int, with_plan: bool, with_torch: bool, tell: Callable[[str], None]
) -> tuple[Row, Problem]:
    """Trace the network and time each stage, torch's work and ours in turn, each on a copy of the graph."""
    tell(f"{blocks} blocks: trace")
    module, inputs = joint_graph(blocks)
    row = Row(blocks, len(module.graph.nodes))
    for number in range(1, rounds + 1):
        tell(f"{blocks} blocks, round {number} of {rounds}: torch" if with_torch else f"{blocks} blocks")
        if with_torch:
            _time_torch(row, copy_graph_module(module), inputs)
        tell(f"{blocks} blocks, round {number} of {rounds}: graphremat")
        problem = _time_ours(row, copy_graph_module(module), with_plan)
    return row, problem


def _time_torch(row: Row, module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
    with activation_memory_budget(TORCHS_FRACTION):
        row.time(
            "torch",
            lambda: torch_partition(module, inputs, num_fwd_outputs=1, static_lifetime_input_indices=[]),
        )


def _time_ours(row: Row, module: fx.GraphModule, with_plan: bool) -> Problem:
    joint = row.time(
        "classify",
        lambda: read_joint_graph(module, num_forward_outputs=1, static_lifetime_input_indices=[]),
    )
    device = find_device(DEVICE)
    problem, index = row.time(
        "build", lambda: build_problem(joint, device, fuses=True, size_hint=default_size_hint)
    )
    row.ops = len(problem.ops)
    if with_plan:
        candidate = row.time("plan", lambda: plan(problem))
        row.time("split", lambda: split_joint_graph(joint, problem, index, candidate.plan))
    return problem


def table_of(rows: Sequence[Row]) -> Table:
    """Seconds by stage, the total's ratio to torch's time, and its growth over the row before."""
    titles = ("blocks", "nodes", "ops", *STAGES[:3], "total", *STAGES[3:], "ratio", "growth")
    table = Table(*titles, box=None, padding=(0, 1, 0, 0))
    for column in table.columns:
        column.justify = "right"
    before: Row | None = None
    for row in rows:
        cells = {stage: f"{row.seconds[stage]:.2f}" if stage in row.seconds else "-" for stage in STAGES}
        planned = "plan" in row.seconds
        table.add_row(
            str(row.blocks),
            f"{row.nodes:,}",
            f"{row.ops:,}",
            *(cells[stage] for stage in STAGES[:3]),
            f"{row.total:.2f}" if planned else "-",
            *(cells[stage] for stage in STAGES[3:]),
            f"{row.total / row.seconds['torch']:.2f}" if planned and "torch" in row.seconds else "-",
            f"{row.total / before.total:.2f}" if planned and before is not None else "-",
        )
        before = row
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Trace, time, print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.plan_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--blocks", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--torch-up-to", type=int, default=32, help="blocks (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="best of so many (default: %(default)s)")
    parser.add_argument("--no-plan", action="store_true", help="stop after the problem")
    parser.add_argument("--problems", type=Path, help="a folder for problem-8.json and so on")
    chosen = parser.parse_args(arguments)
    console = Console()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    rows: list[Row] = []
    with bar:
        task = bar.add_task("warm up", total=len(chosen.blocks) + 1)
        for blocks in (1, *chosen.blocks):
            row, problem = measure(
                blocks,
                rounds=1 if blocks == 1 else chosen.rounds,
                with_plan=not chosen.no_plan,
                with_torch=blocks <= chosen.torch_up_to,
                tell=lambda words: bar.update(task, description=words),
            )
            bar.advance(task)
            if bar.tasks[0].completed == 1:
                continue  # the first one warms up
            rows.append(row)
            if chosen.problems is not None:
                chosen.problems.mkdir(parents=True, exist_ok=True)
                (chosen.problems / f"problem-{blocks}.json").write_text(problem.to_json())
    console.print(
        f"prices of {DEVICE}; torch {torch.__version__} at a budget of {TORCHS_FRACTION}; "
        f"seconds, best of {chosen.rounds}",
        highlight=False,
    )
    console.print(table_of(rows))


if __name__ == "__main__":
    main()
