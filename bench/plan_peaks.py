"""``python -m bench.plan_peaks``: is the peak that ``graphremat.plan`` predicts the one that a run is measured to have?

Plans every network under the budgets of ``python -m bench.keep_budget``, on fake tensors and for as many threads, and
holds the predicted peaks against those that were measured there, everything counted. ``--into docs/planning.md`` writes
the table between its marks. Code is generated here, but nothing is compiled or run. The exit code is 1 if a prediction
is further off than promised.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

import graphremat
from bench import markdown
from bench.budget_rows import LABELS, TORCH, Measurement, read_results
from bench.budget_summary import RESULTS, latest
from bench.networks import NETWORKS
from graphremat.demo import insert

MARKS = ("<!-- planned peaks -->", "<!-- end of planned peaks -->")
MOST_OFF = 0.02
"""Of the whole peak."""
BUDGETS = [label for label in LABELS if label != TORCH]


@dataclass(frozen=True)
class Off:
    """Predicted over measured peak, less 1: by the code, which is what counts, and by the planner's replay alone."""

    code: float
    replay: float


def off_by(row: Measurement) -> Off | None:
    """How far the prediction for a measured row is off; None where nothing was measured or no plan fits."""
    if row.measured_peak_bytes is None:
        return None
    case = NETWORKS[row.network].build(row.size)
    try:
        with threads(row.threads):
            planned = graphremat.plan(case.model, case.inputs, row.memory_budget, code=True)
    except graphremat.BudgetInfeasible:
        return None
    replayed = planned.points[planned.chosen].peak_bytes
    return Off(planned.peak_bytes / row.measured_peak_bytes - 1, replayed / row.measured_peak_bytes - 1)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Plan for so many threads: kernels on a CPU have scratch for each."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def table_of(found: dict[str, dict[str, Off | None]]) -> Iterator[str]:
    """One line a network, one column a budget, and what it comes to."""

    def cell(off: Off | None) -> str:
        return "none fits" if off is None else f"{off.code:+.2%}"

    rows = [(network, *(cell(off.get(budget)) for budget in BUDGETS)) for network, off in found.items()]
    yield from markdown.table_of(("network", "no budget", *BUDGETS[1:]), rows)
    offs = [o for off in found.values() for o in off.values() if o is not None]
    code, replay = ([abs(getattr(o, by)) for o in offs] for by in ("code", "replay"))
    yield ""
    yield (
        f"Off by {max(code):.2%} at most, {statistics.median(code):.2%} in the median of {len(code)}. By the planner's "
        f"replay alone: {max(replay):.2%} at most, {statistics.median(replay):.2%} in the median, "
        f"{sum(o > MOST_OFF for o in replay)} by more than {MOST_OFF:.0%}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan, print the table, and write it where that is asked for; 1 if a prediction is too far off."""
    parser = argparse.ArgumentParser(prog="python -m bench.plan_peaks", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines (default: %(default)s)")
    parser.add_argument("--networks", help="comma-separated (default: all)")
    parser.add_argument("--into", type=Path, help="a file with the marks of the table")
    chosen = parser.parse_args(arguments)
    measured = latest(read_results(chosen.results))
    names = chosen.networks.split(",") if chosen.networks else list(measured)
    if unknown := [name for name in names if name not in measured]:
        parser.error(f"nothing was measured of {', '.join(unknown)}; there are {', '.join(measured)}")
    rows = [row for name in names for row in measured[name] if row.label != TORCH]
    found: dict[str, dict[str, Off | None]] = {name: {} for name in names}
    for row in track(rows, "planning", transient=True):
        found[row.network][row.label] = off_by(row)
    table = list(table_of(found))
    Console().out("\n".join(table), highlight=False)
    if chosen.into is not None:
        insert(chosen.into, "\n".join(table) + "\n", MARKS)
    missed = [o for off in found.values() for o in off.values() if o is None or abs(o.code) > MOST_OFF]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
