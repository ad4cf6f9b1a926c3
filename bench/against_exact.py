"""``python -m bench.against_exact``: our plans beside the proved optimum of random problems.

Each problem is planned once, for all budgets. Its budgets lie evenly between a peak that no plan gets below and the
peak of the fastest plan; for each the exact solver runs, and our plan under the budget is held against what it proves.
Where the solver does not end in time nothing is compared, and the table says how often. One JSON line a problem in
``--out``; a second run skips the seeds that the same sources have measured.

The exit code is 1 if a figure of the table is beyond its bound (``LIMITS``).
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.random_problems import SHAPES, random_problem
from bench.sources import digest_of
from graphremat.passes.cut import NoCut
from graphremat.passes.exact import solve_exact
from graphremat.passes.planner import plan_frontier

RESULTS = Path(__file__).parent / "results" / "against_exact.jsonl"
LIMITS = {"median": 0.005, "p95": 0.02, "missed": 0.01}
"""Added seconds over the optimum as a share of the step, and how often we find no plan where there is one."""


@dataclass(frozen=True)
class Point:
    """One budget of one problem. Seconds are of the whole step, None where there is no plan."""

    budget_bytes: int
    ours_seconds: float | None
    exact_seconds: float | None
    proved: bool

    @property
    def share(self) -> float | None:
        """What our plan adds to the optimum, as a share of the optimum's step; None if there is no comparison."""
        if not self.proved or self.exact_seconds is None or self.ours_seconds is None:
            return None
        return self.ours_seconds / self.exact_seconds - 1.0


@dataclass(frozen=True)
class Row:
    """One problem: how long planning and proving took, its fastest step, and its points."""

    seed: int
    least: int
    most: int
    sources: str
    ops: int
    fastest_seconds: float
    plan_seconds: float
    prove_seconds: float
    points: tuple[Point, ...]


def measure(
    seed: int, least: int, most: int, budgets: int, limit_seconds: float, sources: str = ""
) -> Row | None:
    """Plan and prove one problem; None if its backward needs what can neither be saved nor recomputed."""
    problem = random_problem(seed, least=least, most=most)
    started = time.perf_counter()
    try:
        frontier = plan_frontier(problem, most_recomputations=None)
    except NoCut:
        return None
    plan_seconds = time.perf_counter() - started
    assert frontier.bound is not None
    low, high = frontier.bound.lowest_bytes, frontier.candidates[0].replay.peak_bytes
    points = []
    started = time.perf_counter()
    for step in range(budgets):
        budget = low + (high - low) * step // (budgets - 1)
        place = frontier.under(budget)
        answer = solve_exact(problem, budget, time_limit_seconds=limit_seconds)
        ours = None if place is None else frontier.candidates[place].replay.seconds
        points.append(Point(budget, ours, answer.seconds, answer.proved))
    return Row(
        seed,
        least,
        most,
        sources,
        len(problem.ops),
        frontier.candidates[0].replay.seconds,
        plan_seconds,
        time.perf_counter() - started,
        tuple(points),
    )


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of JSON lines; none if there is no such file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        Row(**{**body, "points": tuple(Point(**p) for p in body["points"])})
        for body in map(json.loads, lines)
    ]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """The numbers of the table; shares are of the optimum's step, ``added`` of the optimum's own added seconds."""
    points = [(row, point) for row in rows for point in row.points]
    shares = [p.share for _, p in points if p.share is not None]
    feasible = [p for _, p in points if p.proved and p.exact_seconds is not None]
    added = [
        (p.ours_seconds - p.exact_seconds) / (p.exact_seconds - row.fastest_seconds)
        for row, p in points
        if p.share is not None
        and p.ours_seconds is not None
        and p.exact_seconds is not None
        and p.exact_seconds > row.fastest_seconds * (1 + 1e-9)
    ]
    return {
        "problems": len(rows),
        "compared": len(shares),
        "unproved": sum(not p.proved for _, p in points),
        "missed": sum(p.ours_seconds is None for p in feasible) / max(1, len(feasible)),
        "median": statistics.median(shares) if shares else 0.0,
        "p95": quantile(shares, 0.95) if shares else 0.0,
        "worst": max(shares, default=0.0),
        "added median": statistics.median(added) if added else 0.0,
        "added p95": quantile(added, 0.95) if added else 0.0,
        "plan seconds": statistics.median(row.plan_seconds for row in rows) if rows else 0.0,
        "prove seconds": statistics.median(row.prove_seconds for row in rows) if rows else 0.0,
    }


def table_of(rows: Sequence[Row]) -> tuple[Table, bool]:
    """The table by shape, and whether all of them together are within the limits."""
    table = Table(
        "problems",
        title="added seconds over the proved optimum, as a share of its step",
        title_justify="left",
    )
    whole = figures(rows)
    for name in whole:
        table.add_column(name, justify="right")
    groups = {shape: [r for r in rows if SHAPES[r.seed % len(SHAPES)] == shape] for shape in SHAPES}
    for name, group in {**groups, "all": rows}.items():
        found = figures(group)
        counts = {"problems", "compared", "unproved"}
        cells = [
            f"{v:.0f}" if k in counts else f"{v:.2f}" if k.endswith("seconds") else f"{v:.2%}"
            for k, v in found.items()
        ]
        table.add_row(name, *cells)
    return table, all(whole[name] <= limit for name, limit in LIMITS.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is missing and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.against_exact", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="problems (default: %(default)s)")
    parser.add_argument("--least", type=int, default=4, help="forward ops (default: %(default)s)")
    parser.add_argument("--most", type=int, default=14, help="forward ops (default: %(default)s)")
    parser.add_argument("--budgets", type=int, default=10, help="a problem (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of a proof (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.budgets < 2:
        parser.error("--budgets must be at least 2: the lowest and the highest")
    sources = digest_of(("passes/*.py", "bench/random_problems.py"))
    setting = (chosen.least, chosen.most, sources)
    done = {r.seed: r for r in read_rows(chosen.out) if (r.least, r.most, r.sources) == setting}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with Progress(transient=True) as progress, chosen.out.open("a") as out:
        for seed in progress.track(range(chosen.seeds), description="planning and proving"):
            if seed in done:
                continue
            row = measure(seed, chosen.least, chosen.most, chosen.budgets, chosen.seconds, sources)
            if row is not None:
                done[seed] = row
                out.write(json.dumps(asdict(row)) + "\n")
                out.flush()
    table, good = table_of([row for seed, row in sorted(done.items()) if seed < chosen.seeds])
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
