"""``python -m bench.recompute_often``: what it brings to recompute an op more than once, on 100 equal layers."""

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from graphremat.passes.frontier import Candidate
from graphremat.passes.planner import plan_frontier
from graphremat.passes.problem import Problem
from graphremat.passes.testing import chain

LIMITS: tuple[int | None, ...] = (1, 2, 3, 4, None)
LAYER_BYTES = 100


@dataclass(frozen=True)
class Lowest:
    """The plan of lowest peak under a limit on recomputation. Peaks are in layers' outputs; times in a layer's."""

    limit: int | None
    peak_layers: float
    added_seconds: float
    added_share: float
    most_runs: int


def lowest(problem: Problem, limit: int | None) -> Lowest:
    """Plan with at most ``limit`` recomputations of an op."""
    candidates: Sequence[Candidate] = plan_frontier(problem, most_recomputations=limit).candidates
    plan, run = candidates[-1].plan, candidates[-1].replay
    return Lowest(
        limit,
        run.peak_bytes / LAYER_BYTES,
        run.recompute_seconds,
        run.recompute_seconds / candidates[0].replay.seconds,
        max(Counter(plan.recomputed(problem)).values(), default=0),
    )


def table_of(rows: Sequence[Lowest], length: int) -> Table:
    """One line a limit."""
    table = Table(title=f"lowest peak on {length} equal layers", title_justify="left")
    table.add_column("recomputations of an op, at most")
    for column in ("peak, layers", "added, layers", "added, % of step", "most runs again"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            "any" if row.limit is None else str(row.limit),
            f"{row.peak_layers:.0f}",
            f"{row.added_seconds:.0f}",
            f"{row.added_share:.1%}",
            str(row.most_runs),
        )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Plans and prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.recompute_often", description=__doc__)
    parser.add_argument("--layers", type=int, default=100, help="default: %(default)s")
    chosen = parser.parse_args(arguments)
    problem = chain(chosen.layers, size_bytes=LAYER_BYTES)
    Console().print(table_of([lowest(problem, limit) for limit in LIMITS], chosen.layers))
    Console().print(f"the square root of {chosen.layers} is {math.sqrt(chosen.layers):.1f}")


if __name__ == "__main__":
    main()
