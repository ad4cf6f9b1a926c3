"""``python -m bench.contest``: everybody on every workload, peaks by the allocator and steps in turns.

    python -m bench.contest --quick
    python -m bench.contest --workloads llama,resnet --our-budgets 6

Every measurement is a JSON line in ``--out``; what is there of the same sources is not measured again, so a run that
was cut goes on where it was. A contestant that fails is a line that says how. ``python -m bench.report`` makes a page.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.contest.placements import PLACEMENTS
from bench.contest.runner import LIBRARYS, QUICK, Field, run
from bench.contest.verdict import table_of
from bench.contest.workloads import WORKLOADS

RESULTS = Path(__file__).parents[1] / "results" / "contest.jsonl"
QUICK_RESULTS = RESULTS.with_name("quick.jsonl")
QUICK_WORKLOADS = "llama,resnet"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; 1 if one of ours failed where it was not the budget."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.contest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    everything = Field()
    parser.add_argument("--quick", action="store_true", help=f"few contestants on {QUICK_WORKLOADS}, small")
    parser.add_argument("--workloads", help="comma-separated (default: all)")
    parser.add_argument("--size", help="large, small or tiny (default: large; small if quick)")
    parser.add_argument("--placements", nargs="*", choices=[*PLACEMENTS, LIBRARYS], help="default: all")
    parser.add_argument("--torch-budgets", nargs="*", type=float, help="default: eleven from 0.95 to 0.05")
    parser.add_argument("--solvers", nargs="*", choices=("dp", "greedy", "ilp"), help="default: dp ilp")
    parser.add_argument("--our-budgets", type=int, help=f"how many (default: {everything.our_budgets})")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each (default: %(default)s)")
    parser.add_argument(
        "--retry-failed", action="store_true", help="try contestants again that failed in earlier runs"
    )
    parser.add_argument(
        "--out", type=Path, help=f"JSON lines (default: {RESULTS.name}, or {QUICK_RESULTS.name})"
    )
    chosen = parser.parse_args(arguments)
    names = (chosen.workloads or (QUICK_WORKLOADS if chosen.quick else ",".join(WORKLOADS))).split(",")
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        parser.error(f"unknown workloads {', '.join(unknown)}; known: {', '.join(WORKLOADS)}")
    field = QUICK if chosen.quick else everything
    field = replace(
        field,
        placements=_or(chosen.placements, field.placements),
        torch_budgets=_or(chosen.torch_budgets, field.torch_budgets),
        solvers=_or(chosen.solvers, field.solvers),
        our_budgets=field.our_budgets if chosen.our_budgets is None else chosen.our_budgets,
    )
    console = Console(width=None if sys.stdout.isatty() else 160)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    out = chosen.out or (QUICK_RESULTS if chosen.quick else RESULTS)
    size = chosen.size or ("small" if chosen.quick else "large")
    with Progress(*columns, console=console, transient=True) as progress:
        rows = run(names, size, field, chosen.rounds, out, progress, retry_failed=chosen.retry_failed)
    for table in table_of(rows):
        console.print(table)
    return 1 if any(row.contestant.startswith("graphremat") and row.failure and
                    "BudgetInfeasible" not in row.failure for row in rows) else 0  # fmt: skip


def _or(given: list[Any] | None, otherwise: tuple[Any, ...]) -> tuple[Any, ...]:
    return otherwise if given is None else tuple(given)


if __name__ == "__main__":
    sys.exit(main())
