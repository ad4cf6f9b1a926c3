"""``python -m bench.sweep_budgets``: one planning, 200 budgets from the lowest peak to the highest.

For every network the frontier is asked for the plan under each budget. Recomputation must never take longer under a
higher budget, no plan's step may either, and no replayed peak may be above its budget; each plan is replayed again.
The exit code is 1 if one is.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.export_problems import problem_of
from graphremat.passes.frontier import Frontier
from graphremat.passes.planner import plan_frontier
from graphremat.passes.problem import Problem
from graphremat.passes.replay import replay

NETWORKS = ("linear_stack", "llama", "dropout_gpt", "resnet", "unet")
MIB = 2.0**20


@dataclass(frozen=True)
class Sweep:
    """One network's answers. ``risen`` counts budgets under which the step takes longer than under the one below,
    ``recomputed_more`` those under which recomputation does, ``over`` those that a plan exceeds."""

    network: str
    plans: int
    lowest_bytes: int
    highest_bytes: int
    used_share: float
    over: int
    risen: int
    recomputed_more: int


def sweep(network: str, problem: Problem, frontier: Frontier, budgets: int) -> Sweep:
    """Ask ``frontier`` at evenly spaced budgets. ``used_share`` is the least share of a budget, less the inputs, that
    a plan which recomputes anything uses."""
    low, high = frontier.candidates[-1].replay.peak_bytes, frontier.candidates[0].replay.peak_bytes
    asked = [low + (high - low) * k // (budgets - 1) for k in range(budgets)]
    places = [frontier.under(budget) for budget in asked]
    found = [frontier.candidates[place] for place in places if place is not None]
    again = {c.plan: replay(problem, c.plan) for c in found}
    runs = [again[c.plan] for c in found]
    fixed = problem.input_bytes
    used = [
        (run.peak_bytes - fixed) / (budget - fixed)
        for run, budget in zip(runs, asked, strict=True)
        if run.recompute_seconds > 0
    ]
    return Sweep(
        network,
        len({c.plan for c in found}),
        low - fixed,
        high - fixed,
        min(used, default=1.0),
        sum(run.peak_bytes > budget for run, budget in zip(runs, asked, strict=True)),
        sum(b.seconds > a.seconds * (1 + 1e-12) for a, b in pairwise(runs)),
        sum(b.recompute_seconds > a.recompute_seconds * (1 + 1e-12) for a, b in pairwise(runs)),
    )


def table_of(sweeps: Sequence[Sweep], budgets: int) -> Table:
    """One line a network."""
    table = Table(title=f"{budgets} budgets, MiB over the inputs", title_justify="left")
    table.add_column("network")
    columns = ("lowest", "highest", "plans", "least used", "over budget", "slower", "more recomputed")
    for column in columns:
        table.add_column(column, justify="right")
    for s in sweeps:
        table.add_row(
            s.network,
            f"{s.lowest_bytes / MIB:.2f}",
            f"{s.highest_bytes / MIB:.2f}",
            str(s.plans),
            f"{s.used_share:.0%}",
            str(s.over),
            str(s.risen),
            str(s.recomputed_more),
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Plans, asks, prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.sweep_budgets", description=__doc__)
    parser.add_argument(
        "--networks", default=",".join(NETWORKS), help="comma-separated (default: %(default)s)"
    )
    parser.add_argument("--size", default="small")
    parser.add_argument("--budgets", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--problems", type=Path, help="folder of NETWORK.json files (default: trace)")
    chosen = parser.parse_args(arguments)
    if chosen.budgets < 2:
        parser.error("--budgets must be at least 2: the lowest and the highest")
    sweeps = []
    with Progress(transient=True) as progress:
        for network in progress.track(chosen.networks.split(","), description="planning"):
            problem = problem_of(network, chosen.size, "inductor", chosen.problems)
            sweeps.append(sweep(network, problem, plan_frontier(problem, remake_saved=False), chosen.budgets))
    Console(width=None if sys.stdout.isatty() else 160).print(table_of(sweeps, chosen.budgets))
    return int(any(s.over or s.risen or s.recomputed_more for s in sweeps))


if __name__ == "__main__":
    sys.exit(main())
